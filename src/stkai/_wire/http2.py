"""Takes the answer that follows a GOAWAY.

A server that ends an HTTP/2 connection in an orderly way still answers the requests that it has accepted (RFC 9113,
section 6.8); nginx does so after a thousand requests, and when it is reloaded. h2 refuses everything behind a GOAWAY:
the answer would be lost, and the request perhaps sent again.
"""

from typing import Any, Final

from hyperframe.exceptions import HyperframeError
from hyperframe.frame import ContinuationFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD: Final = 9  # Bytes in front of a frame's body; RFC 9113, section 4.1.
_LONGEST: Final = 16_384  # Bytes of a body; h2 refuses longer ones.


class GoAways:
    """Holds a GOAWAY back until the answer to the newest request has arrived. One request at a time is on its way.

    Args:
        refused: an error for a GOAWAY that accepts no request at all. httpcore's would not tell that none was executed.
    """

    def __init__(self, refused: type[Exception]) -> None:
        self._refused = refused
        self._newest, self._has_begun, self._is_answered, self._is_over = 0, False, True, False
        self._held = b""  # The GOAWAY that is held back.
        self._rest = b""  # The start of a frame whose end has not arrived yet.
        self._is_open = False  # Whether the headers of the last frame go on in the next one.

    def sent(self, data: bytes) -> bool:
        """Note a request in these frames; whether it is still of use to send them."""
        for frame, _ in _frames_of(data.removeprefix(_PREFACE))[0]:
            if isinstance(frame, HeadersFrame):
                self._newest, self._has_begun, self._is_answered = frame.stream_id, False, False
        return not self._is_over

    def arrived(self, data: bytes) -> bytes:
        """The bytes for h2: whole frames, with a GOAWAY behind the answer that it would cut off."""
        data, self._rest = self._rest + data, b""
        try:
            frames, rest = _frames_of(data)
            if len(rest) > _HEAD + _LONGEST:
                return data
            passed = b"".join(self._passed(frame, text) for frame, text in frames)
        except HyperframeError:  # h2 will say so.
            return data
        self._rest = rest
        return passed

    def _passed(self, frame: Frame, text: bytes) -> bytes:
        """What to pass on now that a frame has arrived."""
        if self._is_over:  # h2 would refuse it, and with it the answer that has arrived with it.
            return b""
        if isinstance(frame, GoAwayFrame):
            frame.parse_body(memoryview(text)[_HEAD:])
            if not self._is_answered and not frame.error_code:
                last = frame.last_stream_id & 0x7FFFFFFF
                if self._newest <= last:
                    self._held = text
                    return b""
                if not last and not self._has_begun:
                    raise self._refused("the server ended the connection before it accepted a request")
            self._held, self._is_over = b"", True
            return text
        if isinstance(frame, HeadersFrame | ContinuationFrame):
            self._has_begun, self._is_open = True, "END_HEADERS" not in frame.flags
        if frame.stream_id == self._newest and (
            "END_STREAM" in frame.flags or isinstance(frame, RstStreamFrame)
        ):
            self._is_answered = True
        if self._held and self._is_answered and not self._is_open:
            text, self._held, self._is_over = text + self._held, b"", True
        return text


def _frames_of(data: bytes) -> tuple[list[tuple[Frame, bytes]], bytes]:
    """The whole frames, without and with their bodies, and what is left."""
    frames: list[tuple[Frame, bytes]] = []
    place = 0
    while place + _HEAD <= len(data):
        frame, length = Frame.parse_frame_header(memoryview(data)[place : place + _HEAD])
        end = place + _HEAD + length
        if end > len(data):
            break
        frames.append((frame, data[place:end]))
        place = end
    return frames, data[place:]


class GoAwayStream:
    """A connection that speaks HTTP/2 if the server agrees to it in the TLS handshake; for `errors`, see `Network`."""

    def __init__(self, stream: Any, errors: Any) -> None:
        self._stream, self._errors = stream, errors
        tls = stream.get_extra_info("ssl_object")
        self._frames = GoAways(errors.ConnectError) if tls and tls.selected_alpn_protocol() == "h2" else None

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
        return type(self)(self._stream.start_tls(*args, **options), self._errors)


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
        return type(self)(await self._stream.start_tls(*args, **options), self._errors)
