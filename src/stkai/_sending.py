"""A request that one thread sends while another waits for the head of its answer, and may give up."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from ._abandonable import GivenUpError, abandoned, current_job


class Sending:
    """A request that a thread sends and its caller may give up. It is the `trace` that httpcore calls at each step.

    Once given up, it neither connects nor sends, and releases the connection on which it waits for the head of its
    answer: if that arrives byte by byte, no timeout ends the wait.

    Args:
        trace: the caller's own `trace`, or None.
    """

    def __init__(self, trace: Callable[[str, Any], object] | None) -> None:
        self._trace = trace
        self._stream: Any = None
        self._lock = threading.Lock()

    def __call__(self, name: str, info: Any) -> object:
        """Note the connection.

        Raises:
            GivenUpError: the step would connect or send, and the request has been given up.
        """
        if name.endswith(_BEGINS) and abandoned():
            raise GivenUpError
        if name.endswith(_CONNECTED):
            self.uses(info["return_value"])
        elif name.endswith("response_closed.started") or name.startswith("http2."):
            self.uses(None)  # Other requests may use it.
        return None if self._trace is None else self._trace(name, info)

    def uses(self, stream: Any) -> None:
        """Note on which connection, a network stream of httpcore's, the answer arrives; None for no longer."""
        with self._lock:
            self._stream = stream

    def do(self, send: Callable[[], Any]) -> Any:
        """Send it, in this thread; afterwards, its response has the connection."""
        job = current_job()
        try:
            if job is not None:
                job.sends(self.break_off)
            return send()
        finally:
            self.uses(None)
            if job is not None:
                job.sends(None)

    def break_off(self) -> None:
        """Make the other thread fail, if it still waits for the head of the answer."""
        with self._lock:
            shut_down(self._stream)


def shut_down(stream: Any) -> None:
    """Shut down the socket of a network stream, if there is one: whoever reads there fails."""
    if stream is not None:
        with suppress(Exception):  # Whatever a wire of the user's calls a stream.
            # The method of an SSLSocket would change it under the thread that reads.
            socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)


_BEGINS: Final = (
    "connect_tcp.started", "connect_unix_socket.started", "start_tls.started", "send_request_headers.started",
)  # fmt: skip
"""The steps that connect or send, as httpcore names them."""

_CONNECTED: Final = ("connect_tcp.complete", "connect_unix_socket.complete", "start_tls.complete")
