"""Requests and reads that a caller may give up; how bodies are read, whole or in part, drained, and sent again."""

import math
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Final

import httpx

from .._abandonable import GivenUpError, abandoned, current_work
from .._event_loops import anyio
from .._families import alike, family_of
from .._headers import copy_request, has_field
from .._process import raise_interrupt

SHORT: Final = 65_536  # Bytes; an unwanted body is read up to this size.

_DIGITS: Final = 16  # No body has a longer length, and Python refuses to convert thousands of digits.
_MAX_DRAIN_TIME: Final = 1.0  # Seconds; an unwanted body is read for at most this long.

_KEYS: Final = ("connect", "read", "write", "pool")

MAX_TIMEOUT: Final = 1e9  # Seconds; sockets do not accept longer timeouts.


def drain_time(left: float) -> float:
    """Seconds for an unwanted body; most of the time left until the deadline is kept for another attempt."""
    return min(_MAX_DRAIN_TIME, left / 4)


def json_of(response: httpx.Response) -> Any:
    """The JSON in a response that has been read; None for anything else."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def timeouts(seconds: float) -> dict[str, float]:
    """A timeout in the form that wires take."""
    return dict.fromkeys(_KEYS, min(seconds, MAX_TIMEOUT))


class Sending:
    """A request, or the reading of a body, that a caller may give up. httpcore calls it as `trace` at each step.

    Once given up, it neither connects nor sends, and shuts down the connection on which it waits for the head or the
    body of an answer: if that arrives byte by byte, no timeout ends the wait. It also calls the caller's own `trace`.
    """

    def __init__(self, trace: Callable[[str, Any], object] | None = None) -> None:
        self._trace = trace
        self._stream: Any = None
        self._lock = threading.Lock()

    def __call__(self, name: str, info: Any) -> object:
        """Record the connection; once the request has been given up, prevent a step that would connect or send."""
        step, _, moment = name.rpartition(".")
        connects = step.endswith(("connect_tcp", "connect_unix_socket", "start_tls"))
        if moment == "started" and (connects or step.endswith("send_request_headers")) and abandoned():
            raise GivenUpError
        if moment == "complete" and connects:
            self.uses(info["return_value"])
        elif name.endswith("response_closed.started") or name.startswith("http2."):
            self.uses(None)  # Other requests may use the connection now.
        return None if self._trace is None else self._trace(name, info)

    def uses(self, stream: Any) -> None:
        """Record the connection (httpcore's network stream) on which the answer arrives; None once it has arrived."""
        with self._lock:
            self._stream = stream

    def do(self, work: Callable[[], Any]) -> Any:
        """Send or read in this thread; afterwards, another request may use the connection."""
        outer = current_work()
        if outer is not None:
            outer.sends(self.break_off)
            if outer.is_abandoned:  # Before its thread began; not every wire looks for that.
                raise GivenUpError
        try:
            return work()
        finally:
            self.uses(None)

    def break_off(self) -> bool:
        """Shut down the socket, so that a thread that is still reading from it fails; returns whether there was one."""
        with self._lock:
            return self._stream is not None and shut_down(self._stream)


def shut_down(stream: Any) -> bool:
    """Shut down the socket of a network stream, which wakes a thread that reads from it; returns whether it had one."""
    with suppress(Exception):  # The stream of a user's wire may be anything.
        # An SSLSocket's own method would change the object while the other thread reads from it.
        socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)
        return True
    return False


def limited(request: httpx.Request, seconds: float, sending: Sending | None = None) -> httpx.Request:
    """The request, with timeouts of at most `seconds`; `sending`, if given, becomes its `trace`."""
    seconds = min(seconds, MAX_TIMEOUT)
    given = request.extensions.get("timeout", {})
    timeout = {key: seconds if given.get(key) is None else min(seconds, given[key]) for key in _KEYS}
    extensions = {**request.extensions, "timeout": timeout}
    if sending is not None:
        extensions["trace"] = sending
    return copy_request(request, extensions=extensions)


def reset_timeouts(request: httpx.Request, sent: httpx.Request) -> None:
    """Restore the caller's timeouts for the body: the wire looks them up when the body is read."""
    given = request.extensions.get("timeout", {})
    sent.extensions["timeout"].update({key: given.get(key) for key in _KEYS})


def can_resend(request: httpx.Request) -> bool:
    """Whether the body can be sent again: bytes can, but a generator or a file may be exhausted."""
    if isinstance(request.stream, family_of(request).ByteStream):
        return True
    # A cache above the stack, such as hishel's, turns even an empty body into a stream.
    framed = "content-length" in request.headers or "transfer-encoding" in request.headers
    return request.method in ("GET", "HEAD") and not framed


def is_read(response: httpx.Response) -> bool:
    """Whether the body has been read."""
    return hasattr(response, "_content")


def read(response: httpx.Response) -> None:
    """Read and decode the body."""
    try:
        if _is_plain(response):
            set_body(response, list(response.stream))  # type: ignore[arg-type]
        else:
            response.read()
    finally:
        response.close()


def _is_plain(response: httpx.Response) -> bool:
    """Whether the body is unread and needs no decoding: reading it here then is much faster than in httpx."""
    kind: Any = type(response)
    is_unread = not (is_read(response) or response.is_stream_consumed or response.is_closed)
    return is_unread and not has_field(response.headers, b"content-encoding") and _is_known(kind)


@cache
def _is_known(kind: Any) -> bool:
    """Whether such responses store their bodies as all known versions of httpx do."""
    kept = vars(kind(200, content=b"")).keys()
    return {"_content", "_num_bytes_downloaded", "is_stream_consumed"} <= set(kept)


def set_body(response: Any, chunks: list[bytes]) -> None:
    """Make the chunks the body of a response, as if they had been read."""
    content = b"".join(chunks)
    response.is_stream_consumed = True
    response._num_bytes_downloaded, response._content = len(content), content  # noqa: SLF001 - see `_is_known`


def load(response: httpx.Response, limit: float, chunks: list[bytes], left: Callable[[], float]) -> None:
    """Load up to `limit` bytes, still encoded, into `chunks`, and close the stream; the rest is dropped.

    If the work that loads is given up, its read fails, so that it returns the connection at once and not after the
    read timeout. Once `left()` is 0 or less, it gives up by itself.
    """
    body: Any = response.stream
    reading, stream = Sending(), response.extensions.get("network_stream")
    if response.extensions.get("http_version") != b"HTTP/2" or hasattr(stream, "frames"):
        reading.uses(stream)  # Without `frames`, it is not ours, and over HTTP/2 carries other answers too.

    def read() -> None:
        size = 0
        for chunk in body:
            chunks.append(chunk)
            size += len(chunk)
            if size >= limit:
                break
            if left() <= 0:
                raise GivenUpError

    try:
        reading.do(read)
    finally:
        body.close()  # After this, another request may use the connection.


def keep(response: httpx.Response, chunks: list[bytes]) -> None:
    """Make the chunks that have arrived the body of the response, which can then be read or streamed as before."""
    response.stream = family_of(response).ByteStream(b"".join(chunks))


def is_short(response: httpx.Response) -> bool:
    """Whether a body is still to be received, and not known to be long."""
    is_received = is_read(response) or isinstance(response.stream, alike(httpx.ByteStream))
    return not (response.is_closed or is_received or exceeds(response, SHORT))


def exceeds(response: httpx.Response, limit: int) -> bool:
    """Whether the headers say that a body has more than this many bytes."""
    length = response.headers.get("content-length", "")
    return length.isdecimal() and (len(length) > _DIGITS or int(length) > limit)


async def aread(response: httpx.Response, left: Callable[[], float] | None = None) -> None:
    """Read and decode the body; give up once `left()` is 0 or less."""
    body: Any = response.stream
    try:
        if _is_plain(response):
            set_body(response, await _achunks(body, left))
        else:
            if left is not None and not is_read(response):
                keep(response, await _achunks(body, left))
                await body.aclose()
            await response.aread()
        await response.aclose()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await response.aclose()
            # httpx2 marks the response as closed even if it is cancelled while it closes the body.
            await body.aclose()
        raise


async def _achunks(body: Any, left: Callable[[], float] | None) -> list[bytes]:
    if left is None:
        return [chunk async for chunk in body]
    chunks, kept = aiter(body), []
    async for chunk in chunks:
        kept.append(chunk)
        if left() <= 0:
            # Leaving now would strand the wire's generators: cancel the next read, unless the body never waits.
            with anyio.CancelScope(shield=True) as reading:
                reading.cancel()
                await anext(chunks, None)
            with anyio.CancelScope(shield=True):
                await _aclose(chunks)
            raise GivenUpError
    return kept


async def _aclose(chunks: Any) -> None:
    if hasattr(chunks, "aclose"):  # trio warns about generators left to the garbage collector.
        await chunks.aclose()


async def aload(
    response: httpx.Response, limit: float, left: Callable[[], float], seconds: float = math.inf
) -> None:
    """Load up to `limit` bytes, still encoded, and close the stream; the response can be read as before.

    Drop what has not arrived within `seconds`; give up once `left()` is 0 or less.
    """
    if is_read(response):
        return
    body: Any = response.stream
    chunks = aiter(body)
    kept: list[bytes] = []
    late = False
    try:
        # Leaving the loop early would strand the wire's generators, and trio would warn: cancel the next read instead.
        with anyio.move_on_after(seconds) as enough:
            size = 0
            async for chunk in chunks:
                if enough.cancel_called:
                    # This body never waits, so it cannot be cancelled; read it to its end, but not indefinitely.
                    size += len(chunk)
                    if late or size >= limit + SHORT:
                        break
                    continue
                kept.append(chunk)
                size += len(chunk)
                late = size < limit and left() <= 0
                if late or size >= limit:
                    enough.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await _aclose(chunks)
            await body.aclose()
    if late:
        raise GivenUpError
    keep(response, kept)


async def adrain(response: httpx.Response, seconds: float) -> None:
    """Close the response, after reading a short body if it arrives quickly, so that the connection stays open."""
    try:
        try:
            if seconds > 0 and is_short(response):
                await aload(response, SHORT, lambda: math.inf, seconds)
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()
    except Exception as error:  # noqa: BLE001 - the response is no longer needed
        raise_interrupt(error)
