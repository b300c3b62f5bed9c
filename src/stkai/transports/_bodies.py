"""Requests that a caller may give up; bodies read whole, in part, or only to reuse the connection, or sent again."""

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
from .._families import family_of
from .._headers import copy_request, has_field

SHORT: Final = 65_536
"""Bytes; an unwanted body is read up to this size."""

_DIGITS: Final = 16  # No body has a length with more; Python refuses to convert thousands of digits.
_BRIEF: Final = 1.0  # Seconds; an unwanted body is read for at most this long.

_KEYS: Final = ("connect", "read", "write", "pool")

_LONGEST: Final = 1e9  # Seconds; sockets do not accept longer timeouts.


def drain_time(left: float) -> float:
    """Seconds for an unwanted body; most of the time left until a deadline is kept for another attempt."""
    return min(_BRIEF, left / 4)


def json_of(response: httpx.Response) -> Any:
    """The JSON in a response that has been read; None for anything else."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def timeouts(seconds: float) -> dict[str, float]:
    """A timeout in the form in which wires take it."""
    return dict.fromkeys(_KEYS, min(seconds, _LONGEST))


class Sending:
    """A request or the reading of a body that a caller may give up. It is the `trace` that httpcore calls at each step.

    Once given up, it neither connects nor sends, and releases the connection on which it waits for the head of its
    answer, or for its body: if that arrives byte by byte, no timeout ends the wait. It calls the caller's own `trace`.
    """

    def __init__(self, trace: Callable[[str, Any], object] | None = None) -> None:
        self._trace = trace
        self._stream: Any = None
        self._lock = threading.Lock()

    def __call__(self, name: str, info: Any) -> object:
        """Note the connection. If the request has been given up, stop a step that would connect or send."""
        step, _, moment = name.rpartition(".")
        connects = step.endswith(("connect_tcp", "connect_unix_socket", "start_tls"))
        if moment == "started" and (connects or step.endswith("send_request_headers")) and abandoned():
            raise GivenUpError
        if moment == "complete" and connects:
            self.uses(info["return_value"])
        elif name.endswith("response_closed.started") or name.startswith("http2."):
            self.uses(None)  # Other requests may use it.
        return None if self._trace is None else self._trace(name, info)

    def uses(self, stream: Any) -> None:
        """Note on which connection, a network stream of httpcore's, the answer arrives; None for no longer."""
        with self._lock:
            self._stream = stream

    def do(self, work: Callable[[], Any]) -> Any:
        """Send or read, in this thread; afterwards, another request may use the connection."""
        outer = current_work()
        if outer is not None:
            outer.sends(self.break_off)
        try:
            return work()
        finally:
            self.uses(None)

    def break_off(self) -> None:
        """Shut down the socket, if there is one, so that the other thread fails if it still waits for what arrives."""
        with self._lock, suppress(Exception):  # Whatever a wire of the user's calls a stream.
            if self._stream is not None:
                # The method of an SSLSocket would change it under the thread that reads.
                socket.socket.shutdown(self._stream.get_extra_info("socket"), socket.SHUT_RDWR)


def limited(request: httpx.Request, seconds: float, sending: Sending | None = None) -> httpx.Request:
    """The request with no timeout longer than `seconds`; `sending` then follows its steps."""
    seconds = min(seconds, _LONGEST)
    given = request.extensions.get("timeout", {})
    timeout = {key: seconds if given.get(key) is None else min(seconds, given[key]) for key in _KEYS}
    extensions = {**request.extensions, "timeout": timeout}
    if sending is not None:
        extensions["trace"] = sending
    return copy_request(request, extensions=extensions)


def unlimited(request: httpx.Request, sent: httpx.Request) -> None:
    """Give the body the caller's timeouts: its wire looks them up when it is read."""
    given = request.extensions.get("timeout", {})
    sent.extensions["timeout"].update({key: given.get(key) for key in _KEYS})


def can_resend(request: httpx.Request) -> bool:
    """Whether the body can be sent again: bytes can, a generator or a file may be used up."""
    if isinstance(request.stream, family_of(request).ByteStream):
        return True
    # A cache above the stack, such as hishel's, makes a stream of a body that is not there either.
    framed = "content-length" in request.headers or "transfer-encoding" in request.headers
    return request.method in ("GET", "HEAD") and not framed


def is_there(response: httpx.Response) -> bool:
    """Whether the body has been read."""
    return hasattr(response, "_content")


def read(response: httpx.Response) -> None:
    """Read and decode the body."""
    try:
        if _is_plain(response):
            _set_body(response, list(response.stream))  # type: ignore[arg-type]
        else:
            response.read()
    finally:
        response.close()


def _is_plain(response: httpx.Response) -> bool:
    """Whether the body is still to be read, and need not be decoded: httpx takes much longer for the same."""
    kind: Any = type(response)
    is_unread = not (is_there(response) or response.is_stream_consumed or response.is_closed)
    return is_unread and not has_field(response.headers, b"content-encoding") and _is_known(kind)


@cache
def _is_known(kind: Any) -> bool:
    """Whether a response stores its body as all known versions of httpx do."""
    kept = vars(kind(200, content=b"")).keys()
    return {"_content", "_num_bytes_downloaded", "is_stream_consumed"} <= set(kept)


def _set_body(response: Any, chunks: list[bytes]) -> None:
    content = b"".join(chunks)
    response.is_stream_consumed = True
    response._num_bytes_downloaded, response._content = len(content), content  # noqa: SLF001 - see `_is_known`


def fetch(response: httpx.Response, limit: float, chunks: list[bytes], left: Callable[[], float]) -> None:
    """Fetch up to `limit` bytes, still encoded, into `chunks`, and close the stream; the rest is dropped.

    If the work that does this is given up, its read fails, so that it returns the connection now and not at its read
    timeout. Once `left()` is 0 or less, it gives up by itself.
    """
    body: Any = response.stream
    reading = Sending()
    if response.extensions.get("http_version") != b"HTTP/2":  # Others arrive there as well.
        reading.uses(response.extensions.get("network_stream"))

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
        body.close()  # From now on, another request may use the connection.


def keep(response: httpx.Response, chunks: list[bytes]) -> None:
    """Make what has arrived the body of the response; it can be read or streamed as before."""
    response.stream = family_of(response).ByteStream(b"".join(chunks))


def is_short(response: httpx.Response) -> bool:
    """Whether a body is still unread, and not known to be long."""
    return not (response.is_closed or is_there(response) or exceeds(response, SHORT))


def exceeds(response: httpx.Response, most: int) -> bool:
    """Whether the headers say that a body has more than this many bytes."""
    length = response.headers.get("content-length", "")
    return length.isdecimal() and (len(length) > _DIGITS or int(length) > most)


async def aread(response: httpx.Response) -> None:
    body: Any = response.stream
    try:
        if _is_plain(response):
            _set_body(response, [chunk async for chunk in body])
        else:
            await response.aread()
        await response.aclose()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await response.aclose()
            # httpx2 closes it too, but without a shield: cancelled there, it marks the response as closed.
            await body.aclose()
        raise


async def aload(
    response: httpx.Response, limit: float, left: Callable[[], float], seconds: float = math.inf
) -> None:
    """Fetch up to `limit` bytes, still encoded, and close the stream; the response can be read as before.

    Drop what has not arrived within `seconds`; give up once `left()` is 0 or less.
    """
    if is_there(response):
        return

    body: Any = response.stream
    chunks = aiter(body)
    kept: list[bytes] = []
    late = False
    try:
        # Leaving the loop early would strand the wire's generators, of which trio warns: cancel the next read instead.
        with anyio.move_on_after(seconds) as enough:
            size = 0
            async for chunk in chunks:
                if enough.cancel_called:
                    # This body never waits, so that nothing can be cancelled; it is let run out, but not for ever.
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
            if hasattr(chunks, "aclose"):  # trio warns of generators that are left to the garbage collector.
                await chunks.aclose()
            await body.aclose()
    if late:
        raise GivenUpError
    keep(response, kept)


async def adrain(response: httpx.Response, seconds: float) -> None:
    """Close the response, after reading a short body, if it comes quickly, so that the connection stays open."""
    try:
        if seconds > 0 and is_short(response):
            with suppress(Exception):  # The response is of no use any more, however it ends.
                await aload(response, SHORT, lambda: math.inf, seconds)
    finally:
        with anyio.CancelScope(shield=True), suppress(Exception):
            await response.aclose()
