"""The frames of an HTTP/2 connection that its server ends: a GOAWAY goes behind the answer that it would cut off."""

import httpcore
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from stkai._wire.http2 import FrameFilter

HEADERS = HeadersFrame(1, data=b"x" * 10, flags=["END_HEADERS"])
DATA = DataFrame(1, data=b"y" * 20)
END = DataFrame(1, data=b"z" * 20, flags=["END_STREAM"])
GOAWAY = GoAwayFrame(last_stream_id=1, additional_data=b"why")
PING = PingFrame(opaque_data=b"12345678")


def written(frames: list[Frame]) -> bytes:
    return b"".join(frame.serialize() for frame in frames)


def asking(stream: int = 1) -> FrameFilter:
    """A connection on which a request was sent."""
    frames = FrameFilter(httpcore)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if stream == 1 else b""
    request = HeadersFrame(stream, data=b"r" * 300, flags=["END_HEADERS"])
    assert frames.sent(preface + written([SettingsFrame(), request, DataFrame(stream, data=b"body")]))
    return frames


@pytest.mark.parametrize(
    ("arriving", "expected"),
    [
        ([GOAWAY, HEADERS, DATA, END], [HEADERS, DATA, END, GOAWAY]),
        ([SettingsFrame(), HEADERS, GOAWAY, DATA, END], [SettingsFrame(), HEADERS, DATA, END, GOAWAY]),
        ([HEADERS, END, GOAWAY], [HEADERS, END, GOAWAY]),
        ([GOAWAY, PING, RstStreamFrame(1)], [PING, RstStreamFrame(1), GOAWAY]),
        ([GOAWAY, HEADERS, END, RstStreamFrame(1), PING], [HEADERS, END, GOAWAY]),
        ([HEADERS, END, GOAWAY, WindowUpdateFrame(0, window_increment=1), GOAWAY], [HEADERS, END, GOAWAY]),
        ([GoAwayFrame(last_stream_id=2**31 - 1), GOAWAY, END], [END, GOAWAY]),
    ],
)
def test_a_goaway_goes_behind_the_answer_however_the_bytes_arrive(
    arriving: list[Frame], expected: list[Frame]
) -> None:
    data = written(arriving)
    for size in (1, 2, 7, 8, 9, 10, 17, 18, 30, len(data)):
        frames = asking()
        passed = [frames.arrived(data[place : place + size]) for place in range(0, len(data), size)]
        assert b"".join(passed) == written(expected)
        assert not frames.sent(b""), "what is sent now is of no use"


def test_a_goaway_goes_behind_the_whole_head_of_an_answer_without_a_body() -> None:
    head = HeadersFrame(1, data=b"x", flags=["END_STREAM"])
    rest = ContinuationFrame(1, data=b"y", flags=["END_HEADERS"])
    assert asking().arrived(written([GOAWAY, head, rest])) == written([head, rest, GOAWAY])


@pytest.mark.parametrize(
    "goaway", [GoAwayFrame(last_stream_id=1, error_code=2), GoAwayFrame(last_stream_id=0, error_code=2)]
)
def test_a_goaway_without_an_answer_to_come_passes_at_once(goaway: GoAwayFrame) -> None:
    assert asking().arrived(written([goaway])) == written([goaway])


def test_a_stricter_goaway_takes_the_place_of_one_that_is_held_back() -> None:
    frames, last = asking(3), GoAwayFrame(last_stream_id=3, error_code=2)
    assert frames.arrived(written([GoAwayFrame(last_stream_id=3)])) == b""
    assert frames.arrived(written([last, PING])) == written([last])


@pytest.mark.parametrize(
    ("stream", "refusal"),
    [
        (1, GoAwayFrame(last_stream_id=0)),
        (3, GoAwayFrame(last_stream_id=1)),
        (3, GoAwayFrame(last_stream_id=1, error_code=2)),
    ],
)
def test_a_goaway_refuses_a_request_that_it_does_not_accept(stream: int, refusal: GoAwayFrame) -> None:
    with pytest.raises(httpcore.ConnectError):
        asking(stream).arrived(written([SettingsFrame(), refusal]))
    frames = asking(stream)
    assert frames.arrived(written([GoAwayFrame(last_stream_id=stream)])) == b""
    with pytest.raises(httpcore.ConnectError):
        frames.arrived(written([refusal]))
    head = HeadersFrame(stream, data=b"x", flags=["END_HEADERS"])
    with pytest.raises(httpcore.RemoteProtocolError):
        asking(stream).arrived(written([head, refusal]))


@pytest.mark.parametrize(
    "wrong", [DATA.serialize().replace(b"\1", b"\0"), b"\1\0\0\0\0\0\0\0\1" + b"x" * 65_536]
)
def test_what_is_no_frame_or_too_long_passes_as_it_arrives(wrong: bytes) -> None:
    frames = asking()
    assert frames.arrived(HEADERS.serialize()[:-1]) == b""
    assert frames.arrived(HEADERS.serialize()[-1:] + wrong) == HEADERS.serialize() + wrong
