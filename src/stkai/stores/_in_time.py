"""Limits the time of calls that have no timeout, such as those of a client that the user configured."""

import threading
from collections.abc import Callable
from typing import Any


class InTime:
    """Runs calls in a thread, and stops waiting for a call after a timeout.

    While a call is stuck, further calls fail at once, so that there is never more than one thread.

    Args:
        timeout: seconds.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._stuck: threading.Thread | None = None

    def call(self, work: Callable[[], Any]) -> Any:
        """The result of `work`.

        Raises:
            TimeoutError: the call takes too long, or an earlier call is still running.
        """
        if self._stuck is not None and self._stuck.is_alive():
            raise TimeoutError("the server has not answered an earlier call yet")
        self._stuck = None
        found: list[Any] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                found.append(work())
            except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
                errors.append(error)

        thread = threading.Thread(target=run, name="stkai-store-call", daemon=True)
        thread.start()
        thread.join(self._timeout)
        if errors:
            raise errors[0]
        if not found:
            self._stuck = thread
            raise TimeoutError(f"the server did not answer within {self._timeout:g} s")
        return found[0]
