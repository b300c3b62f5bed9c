"""One connection of aiohttp, guarded against faults that aiohttp's own client would not notice."""

import asyncio
import inspect
import re
import select
import sys
import threading
from contextlib import suppress
from functools import cache
from typing import Any, Final

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpResponseParser
from aiohttp.http_exceptions import HttpProcessingError

from .httpcore_fixes import CLOSED_IN_USE

BUFFER_SIZE: Final = 65_536  # Bytes that are buffered, both before writing and before reading.

MAX_HEAD: Final = 102_400  # Bytes that the head of an answer may have, as in httpcore.

_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")  # As h11 and aiohttp read it: RFC 9112, section 2.2.

_PARSER: Final[Any] = sys.modules[HttpResponseParser.__module__]  # Its `DEBUG` makes new parsers strict.
_PARSER_LOCK: Final = threading.Lock()  # Held while `DEBUG` is off: several threads may have event loops.


class Connection(ResponseHandler):
    """One connection. If bytes arrive while it is idle, they belong to no request, so it cannot be reused."""

    idle_since: float | None = None  # In seconds of the loop's clock; None while in use.
    awaits_head = False  # Whether the head of the answer is still to come.
    _last = b""  # The last bytes of a head that is still incomplete.
    head_left: int | None = None  # How many bytes of the head may still arrive; None once it is complete.
    seconds: float | None = None  # How long each read may take; None for no limit.
    timeout: asyncio.Timeout | None = None  # Its timer, while the head or more of the body is awaited.
    is_last = False  # Whether no other request may follow the one in progress.
    broken_by: BaseException | None = None  # aiohttp forgets this error once a body without length has begun.

    def is_alive(self) -> bool:
        """Whether it can carry another request: it is open, and its socket has nothing to read.

        While a program keeps its event loop busy, the loop does not notice that the server has closed the connection.
        """
        if not self.is_connected() or self.transport is None:
            return False
        try:
            return not is_readable(self.transport.get_extra_info("socket").fileno())
        except (OSError, ValueError):  # The socket is closed.
            return False

    def drop(self) -> None:
        """Close at once. aiohttp's `close` would first send the rest of a request, however long the server takes."""
        payload = self._payload
        error = aiohttp.ClientConnectionError(CLOSED_IN_USE)
        if self.transport is not None:
            self.transport.abort()
        self.close()
        if self.awaits_head and self.exception() is None:  # `close` would have forgotten the error.
            self.set_exception(error)
        if payload is not None and not payload.is_eof():  # aiohttp does not wake a task that is reading it.
            payload.set_exception(error)

    def set_response_params(self, **parameters: Any) -> None:
        """Prepare for an answer. In asyncio's debug mode, aiohttp would be stricter than it usually is."""
        self._parameters = parameters
        if not getattr(_PARSER, "DEBUG", False):
            super().set_response_params(**parameters)
            return
        with _PARSER_LOCK:
            _PARSER.DEBUG = False
            try:
                super().set_response_params(**parameters)
            finally:
                _PARSER.DEBUG = True

    def data_received(self, data: bytes) -> None:
        if self.idle_since is not None:
            self.drop()
            return
        # In steps, so that the answer is not lost if something that is not HTTP follows it.
        begin, start = 0, len(self._last)
        data = self._last + data
        while self.awaits_head and start < len(data):
            found = _END_OF_HEAD.search(data, begin)
            end = len(data) if found is None else found.end()
            self._last = b"" if found else data[max(begin, end - 2) :]
            self._parse(data[start:end])
            if self.awaits_head and found and self.exception() is None:
                # The parser would refuse an answer that follows an informational one with "Connection: close".
                self._should_close, self.head_left = False, MAX_HEAD
                self.set_response_params(**self._parameters)
            if end == len(data):
                return
            begin = start = end
        # May be empty: aiohttp calls this without data to parse what it has buffered.
        self._parse(data[start:])

    def feed_data(self, data: Any, *size: int) -> None:
        """Called by aiohttp with a head, and the body that follows it. Informational answers are dropped here."""
        self.awaits_head = _is_interim(data[0].code)
        if not self.awaits_head:
            super().feed_data(data, *size)
            self.timeout = None

    def _parse(self, data: bytes) -> None:
        if self._exception is not None:  # aiohttp would close TLS twice; asyncio then ignores `abort`.
            return
        super().data_received(data)
        if self.head_left is not None:
            self.head_left = None if self._buffer else self.head_left - len(data)
            if self.head_left is not None and self.head_left < 0 and self.exception() is None:
                self.set_exception(HttpProcessingError(message=f"its head is longer than {MAX_HEAD} bytes"))
        error, payload = self._exception, self._payload
        still_waits = data and (self.head_left is not None or not getattr(payload, "_buffer", True))
        if still_waits and self.timeout is not None and self.seconds is not None:
            with suppress(RuntimeError):  # It has just expired.
                self.timeout.reschedule(self._loop.time() + self.seconds)
        if isinstance(error, HttpProcessingError) and payload is not None and not payload.is_eof():
            payload.set_exception(error)  # aiohttp would leave the reader of the body waiting.

    def has_leftovers(self) -> bool:
        """Whether a part of another answer has arrived behind the one that is complete."""
        with suppress(HttpProcessingError):  # Older versions of aiohttp expect a body after HEAD, too.
            return self._parser is None or self._parser.feed_eof() is not None
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self.broken_by = exc
        super().connection_lost(exc)


def _is_interim(status: int) -> bool:
    """Whether the final answer is still to come (RFC 9110, section 15.2)."""
    return httpx.codes.is_informational(status) and status != httpx.codes.SWITCHING_PROTOCOLS


def is_readable(descriptor: int) -> bool:
    """Whether data, or the end of the connection, has arrived at a socket."""
    if hasattr(select, "poll"):  # `select` does not accept large descriptors, but Windows has no `poll`.
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([descriptor], [], [], 0)[0])


@cache
def parser_limits() -> dict[str, Any]:
    """Arguments that set the parser's limits for a head to httpcore's."""
    limits = {"max_line_size": MAX_HEAD, "max_field_size": MAX_HEAD, "max_headers": MAX_HEAD}
    known = inspect.signature(ResponseHandler.set_response_params).parameters
    return {name: value for name, value in limits.items() if name in known}
