"""The plan for sending one response, complete before the first byte is sent."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ._faults import Fault, HangUp, Reset, Slow
from ._reply import Headers, Reply

NO_BODY = (204, 304)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What is sent, and how it ends.

    Attributes:
        length: The Content-Length; None for chunked.
        chunks: The body, in the pieces in which it is written.
        pause: Seconds between two chunks.
        ending: "keep" the connection, "close" it cleanly, or "reset" it.
        finished: Whether the end of the body is sent.
        announced: Whether `Connection: close` announces that the connection will close.
    """

    status: int
    headers: Headers
    length: int | None
    chunks: tuple[bytes, ...]
    pause: float = 0.0
    ending: Literal["keep", "close", "reset"] = "keep"
    finished: bool = True
    announced: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether this is an ordinary answer that can be sent in one write."""
        return self.ending == "keep" and self.length is not None and not (self.pause and len(self.chunks) > 1)


def plan(reply: Reply, fault: Fault) -> Delivery:
    """The delivery of an answer, given a fault."""
    framing = fault.framing if isinstance(fault, Reset) else None
    headers, chunks = reply.headers, reply.pieces
    if reply.status in NO_BODY:
        chunks = ()
    elif framing == "gzip":
        headers += (("content-encoding", "gzip"),)
        chunks = (gzip.compress(reply.body),)
    is_chunked = framing == "chunked" or (reply.streamed and framing is None)
    whole = Delivery(
        status=reply.status,
        headers=headers,
        length=None if is_chunked else sum(map(len, chunks)),
        chunks=chunks,
        pause=reply.pause,
    )
    match fault:
        case Reset(at="body"):
            return replace(whole, chunks=tuple(_first(chunks, fault.after)), ending="reset", finished=False)
        case Reset():
            return replace(whole, ending="reset")
        case HangUp():
            return replace(whole, ending="close", announced=fault.announced)
        case Slow():
            return replace(whole, chunks=tuple(_slices(reply.body, fault.size)), pause=fault.every)
        case _:
            return whole


def partial_head(reply: Reply, after: int) -> bytes:
    """The first bytes of a response's head, but never the whole head."""
    lines = (f"HTTP/1.1 {reply.status} OK", *(f"{name}: {value}" for name, value in reply.headers))
    return "\r\n".join(lines).encode()[:after]


def _first(chunks: tuple[bytes, ...], count: int) -> Iterator[bytes]:
    left = min(count, sum(map(len, chunks)) - 1)
    for chunk in chunks:
        if left > 0:
            yield chunk[:left]
            left -= len(chunk)


def _slices(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))
