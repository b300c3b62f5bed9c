"""Fixes for httpcore's HTTP/2.

It loses an answer that arrives after a GOAWAY, sends a request again without its body, and may send empty frames
forever: `FrameFilter` therefore sees the frames of a connection before h2 or the server does. httpcore does not notice
that a body is shorter than announced, and raises h2's errors while reading one.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import starmap
from typing import Any, Final

import httpx

from .._families import error_for

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD: Final = 9  # Bytes in front of a frame's body; RFC 9113, section 4.1.
_MAX_BODY: Final = 16_384  # Bytes of a body; h2 refuses longer ones.
_STREAM: Final = 0x7FFFFFFF  # The bits of a stream's number.
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 7, 9  # Types of frames.
_END_STREAM, _END_HEADERS = 1, 4  # Their flags.
_MAX_STREAMS: Final = b"\0\3"  # The setting SETTINGS_MAX_CONCURRENT_STREAMS.
_REFUSED_STREAM: Final = b"\0\0\0\7"  # "Not processed": RFC 9113, section 8.7.
_BODILESS_STATUSES: Final = {httpx.codes.NO_CONTENT, httpx.codes.NOT_MODIFIED}

_SHRUNK: Final = (
    "the server allows less data than was already sent (its flow control window shrank): use HTTP/1.1"
)


class FrameFilter:
    """Decides which frames of a connection h2 and the server get. Only one request is in flight at a time.

    A GOAWAY is held back until the answer to the newest request has arrived. A server that closes an HTTP/2 connection
    gracefully still answers the requests that it has accepted (RFC 9113, section 6.8); nginx does so after a thousand
    requests, and when it is reloaded. h2 refuses all frames after a GOAWAY: the answer would be lost, and the request
    might be sent again.

    A request that the server rejects, by a GOAWAY or by REFUSED_STREAM, fails with a ConnectError. After a GOAWAY,
    httpcore would send it again with whatever is left of its body: nothing, if that is a file.
    """

    is_full = False
    """Whether the server allows no more requests: httpcore fails if it is asked to send one."""

    def __init__(self, errors: Any) -> None:
        self._errors = errors  # httpcore, or the version of it that httpx2 uses.
        self._newest, self._has_begun, self._is_answered, self._is_over = 0, False, True, False
        self._goaway = b""  # The GOAWAY that is held back.
        self._rest = b""  # The start of an incomplete frame.
        self._is_open = False  # Whether the headers of the last frame continue in the next one.

    @classmethod
    def of(cls, stream: Any, errors: Any) -> "FrameFilter | None":
        """The filter for a connection; None unless the TLS handshake has chosen HTTP/2."""
        tls = stream.get_extra_info("ssl_object")
        return cls(errors) if tls and tls.selected_alpn_protocol() == "h2" else None

    def sent(self, data: bytes) -> bool:
        """Record a request in these frames; returns whether sending them still makes sense."""
        for kind, flags, stream, frame in _split_frames(data.removeprefix(_PREFACE))[0]:
            if kind == _DATA and len(frame) == _HEAD and not flags & _END_STREAM:
                # httpcore sends nothing, forever, instead of waiting.
                raise self._errors.RemoteProtocolError(_SHRUNK)
            if kind == _HEADERS:
                self._newest, self._has_begun, self._is_answered = stream, False, False
        return not self._is_over

    def arrived(self, data: bytes) -> bytes:
        """The bytes for h2: complete frames, with a GOAWAY moved behind the answer that it would cut off."""
        frames, self._rest = _split_frames(self._rest + data)
        passed = b"".join(starmap(self._pass_on, frames))
        if int.from_bytes(self._rest[:3].ljust(3, b"\0")) > _MAX_BODY:  # h2 will say so.
            passed, self._rest = passed + self._rest, b""
        return passed

    def _pass_on(self, kind: int, flags: int, stream: int, frame: bytes) -> bytes:
        """The bytes to pass on when a frame has arrived."""
        if self._is_over:  # h2 would refuse it, along with the answer in the same chunk.
            return b""
        if kind == _GOAWAY and not stream and len(frame) >= _HEAD + 8:
            last, code = (int.from_bytes(frame[offset : offset + 4]) for offset in (_HEAD, _HEAD + 4))
            last &= _STREAM
            if not self._is_answered and not code and self._newest <= last:
                self._goaway = frame
                return b""
            # A failing server may report stream 0, whatever it has accepted.
            if not self._is_answered and self._newest > last and (last or not code):
                if self._has_begun:
                    raise self._errors.RemoteProtocolError(
                        "the server ended the connection within its answer"
                    )
                raise self._errors.ConnectError(
                    "the server ended the connection before it accepted the request"
                )
            self._goaway, self._is_over = b"", True
            return frame
        if kind == _SETTINGS:
            for offset in range(_HEAD, len(frame), 6):
                if frame[offset : offset + 2] == _MAX_STREAMS:
                    self.is_full = not any(frame[offset + 2 : offset + 6])
        if kind in {_HEADERS, _CONTINUATION}:
            self._has_begun, self._is_open = True, not flags & _END_HEADERS
        ends = kind == _RST_STREAM or (kind in {_DATA, _HEADERS} and flags & _END_STREAM)
        if ends and stream == self._newest:
            if frame[_HEAD:] == _REFUSED_STREAM and kind == _RST_STREAM and not self._has_begun:
                raise self._errors.ConnectError("the server refused the request before it processed it")
            self._is_answered = True
        if self._goaway and self._is_answered and not self._is_open:
            frame, self._goaway, self._is_over = frame + self._goaway, b"", True
        return frame


def _split_frames(data: bytes) -> tuple[list[tuple[int, int, int, bytes]], bytes]:
    """The type, flags, stream and bytes of each complete frame, and the remaining bytes."""
    frames = []
    offset = 0
    while offset + _HEAD <= len(data):
        end = offset + _HEAD + int.from_bytes(data[offset : offset + 3])
        if end > len(data):
            break
        stream = int.from_bytes(data[offset + 5 : offset + _HEAD]) & _STREAM
        frames.append((data[offset + 3], data[offset + 4], stream, data[offset:end]))
        offset = end
    return frames, data[offset:]


class CheckedBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of an answer over HTTP/2, sync or async: its errors are httpx's, and it is as long as announced."""

    def __init__(self, response: httpx.Response, request: httpx.Request) -> None:
        self._body: Any = response.stream
        self._request, self._length = request, 0
        length = response.headers.get("content-length", "")
        has_body = request.method != "HEAD" and response.status_code not in _BODILESS_STATUSES
        self._expected = int(length) if has_body and length.isdecimal() else None

    def __iter__(self) -> Iterator[bytes]:
        with self._checked():
            for chunk in self._body:
                self._length += len(chunk)
                yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._checked():
            async for chunk in self._body:
                self._length += len(chunk)
                yield chunk

    def close(self) -> None:
        self._body.close()

    async def aclose(self) -> None:
        await self._body.aclose()

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """Check the length, which h2 does only if a body ends with data; turn h2's errors into httpx's."""
        try:
            yield
        except Exception as error:
            if not type(error).__module__.startswith("h2."):
                raise
            raise error_for(httpx.RemoteProtocolError, str(error), self._request) from error
        if self._expected not in {None, self._length}:
            raise malformed(f"the body ended after {self._length} of {self._expected} bytes", self._request)


def malformed(message: str, request: httpx.Request) -> httpx.RequestError:
    """httpx's error for an answer that violates HTTP/2; its cause, an h2 error, shows that no connection broke."""
    error = error_for(httpx.RemoteProtocolError, message, request)
    error.__cause__ = import_module("h2.exceptions").ProtocolError(message)
    return error
