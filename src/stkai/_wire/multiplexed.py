"""The sync wire for HTTP/2: one transport of httpx, whose few connections carry many requests at once."""

from collections.abc import Callable

import httpx

from .._families import HTTPX, Family
from .._forks import after_fork
from .closing import Closable


class Multiplexed(Closable):
    """Sends all requests through one wire; a forked child opens connections of its own.

    Args:
        make: makes the wire.
        family: its package.
    """

    def __init__(self, make: Callable[[], httpx.BaseTransport], family: Family = HTTPX) -> None:
        self.family = family
        self._make = make
        self._wire = make()
        after_fork(self, Multiplexed._start_anew)

    def _start_anew(self) -> None:
        self._wire = self._make()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.require_open()
        return self._wire.handle_request(request)

    def _close(self) -> None:
        self._wire.close()
