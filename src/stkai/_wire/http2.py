"""Takes the answer that follows a GOAWAY.

A server that ends an HTTP/2 connection in an orderly way still answers the requests that it has accepted (RFC 9113,
section 6.8); nginx does so after a thousand requests, and when it is reloaded. h2 refuses everything behind a GOAWAY:
the answer would be lost, and the request perhaps sent again.
"""

import struct
from typing import Any, Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD: Final = struct.Struct(">BHBBI")
"""What a frame begins with: its length in 24 bits, its type, its flags and its stream; RFC 9113, section 4.1."""

_LAST: Final = struct.Struct(">II")
"""What a GOAWAY says: the last stream that is answered, and an error code."""

_DATA, _HEADERS, _RST_STREAM, _GOAWAY, _CONTINUATION = 0, 1, 3, 7, 9
_END_STREAM, _END_HEADERS = 1, 4
_LONGEST: Final = 16_384  # Bytes of a frame; h2 refuses longer ones.


class GoAways:
    """Holds a GOAWAY back until the answer to the newest request has arrived. One request at a time is on its way."""

    def __init__(self) -> None:
        self._newest = 0
        self._is_answered = True
        self._is_over = False
        self._held = b""
        """The GOAWAY that is held back."""
        self._start = b""
        """The start of a frame that is not known yet."""
        self._left = 0
        """How many bytes of the current frame have not arrived yet."""
        self._is_open = False
        """Whether the current frame's headers go on in the next one."""

    def sent(self, data: bytes) -> bool:
        """Note a request in these frames; whether it is still of use to send them."""
        place = len(_PREFACE) if data.startswith(_PREFACE) else 0
        while place + _HEAD.size <= len(data):
            high, low, kind, _, stream = _HEAD.unpack_from(data, place)
            if kind == _HEADERS:
                self._newest, self._is_answered = stream, False
            place += _HEAD.size + (high << 16 | low)
        return not self._is_over

    def arrived(self, data: bytes) -> bytes:
        """The bytes for h2, with a GOAWAY behind the answer that it would cut off."""
        data, self._start, place = self._start + data, b"", 0
        frames: list[bytes] = []
        while place < len(data):
            if not self._left:
                frame = self._begin(data, place)
                if frame is None:
                    self._start = data[place:]
                    break
                if frame:
                    frames.append(self._goes_away(frame))
                    place += len(frame)
                    continue
            part = data[place : place + self._left]
            frames.append(part)
            place += len(part)
            self._left -= len(part)
            if self._held and self._is_answered and not self._left and not self._is_open:
                frames.append(self._held)
                self._held, self._is_over = b"", True
        return b"".join(frames)

    def _begin(self, data: bytes, place: int) -> bytes | None:
        """Begin a frame: a GOAWAY, or nothing for others, which pass as they arrive; None if more has to arrive."""
        if len(data) - place < _HEAD.size:
            return None
        high, low, kind, flags, stream = _HEAD.unpack_from(data, place)
        length = _HEAD.size + (high << 16 | low)
        if kind == _GOAWAY and _LAST.size <= length - _HEAD.size <= _LONGEST:
            frame = data[place : place + length]
            return frame if len(frame) == length else None
        self._left, self._is_open = length, kind in {_HEADERS, _CONTINUATION} and not flags & _END_HEADERS
        ends = kind == _RST_STREAM or (kind in {_DATA, _HEADERS} and flags & _END_STREAM)
        if ends and stream == self._newest:
            self._is_answered = True
        return b""

    def _goes_away(self, frame: bytes) -> bytes:
        last, error = _LAST.unpack_from(frame, _HEAD.size)
        if self._is_answered or error or self._newest > last & 0x7FFFFFFF:
            self._held, self._is_over = b"", True
            return frame
        self._held = frame
        return b""


class GoAwayStream:
    """A connection that speaks HTTP/2 if the server agrees to it in the TLS handshake."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        tls = stream.get_extra_info("ssl_object")
        self._frames = GoAways() if tls and tls.selected_alpn_protocol() == "h2" else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, max_bytes: int, timeout: float | None = None) -> Any:
        while True:
            data = self._stream.read(max_bytes, timeout)
            if not data or self._frames is None or (data := self._frames.arrived(data)):
                return data

    def write(self, buffer: bytes, timeout: float | None = None) -> Any:
        if self._frames is None or self._frames.sent(buffer):
            self._stream.write(buffer, timeout)

    def start_tls(self, *args: Any, **options: Any) -> Any:
        return type(self)(self._stream.start_tls(*args, **options))


class AsyncGoAwayStream(GoAwayStream):
    """The async version."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> Any:
        while True:
            data = await self._stream.read(max_bytes, timeout)
            if not data or self._frames is None or (data := self._frames.arrived(data)):
                return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> Any:
        if self._frames is None or self._frames.sent(buffer):
            await self._stream.write(buffer, timeout)

    async def start_tls(self, *args: Any, **options: Any) -> Any:
        return type(self)(await self._stream.start_tls(*args, **options))
