"""Bounds the time of calls that bring no timeout of their own, such as those of a client that the user made."""

import threading
from collections.abc import Callable
from typing import Any


class InTime:
    """Carries calls out in a thread, and stops waiting for one after a while.

    While a call is stuck, the next ones fail at once: there is never more than one thread.

    Args:
        timeout: seconds.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._stuck: threading.Thread | None = None

    def call(self, work: Callable[[], Any]) -> Any:
        """The result of `work`.

        Raises:
            TimeoutError: it is not there in time, or an earlier call is still under way.
        """
        if self._stuck is not None and self._stuck.is_alive():
            raise TimeoutError("the server has not answered an earlier call yet")
        self._stuck = None
        found: list[Any] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                found.append(work())
            except BaseException as error:  # noqa: BLE001 - raised anew where somebody waits for it
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
