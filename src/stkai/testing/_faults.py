"""Faults on request: what can go wrong between a client and this server, one frozen dataclass each.

Each applies to one request. `Answer` and `Reset(at="start")` replace the service, which does not see the request (no
quota is used); with the others the service has done its work, and only the answer suffers.
"""

import gzip
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from http.client import responses
from typing import Any, Literal

from ._requests_and_replies import Reply, error_reply

HeadersLike = Mapping[str, str] | Iterable[tuple[str, str]]
Framing = Literal["length", "chunked", "gzip"] | None


class Fault:
    """Base class of the faults; by itself, one that changes nothing."""

    def apply(self, reply: Reply) -> Reply:
        """The answer with this fault; by default unchanged."""
        return reply


@dataclass(frozen=True)
class Answer(Fault):
    """Send this answer instead. Without a body, a short JSON error."""

    status: int
    _: KW_ONLY
    headers: HeadersLike = ()
    body: bytes | str | None = None

    def reply(self) -> Reply:
        """The whole answer."""
        given = self.headers.items() if isinstance(self.headers, Mapping) else self.headers
        headers = tuple((name.lower(), value) for name, value in given)
        if self.body is None:
            error = error_reply(self.status, "fault", responses.get(self.status, "a fault on request"))
            return Reply(status=self.status, headers=headers, pieces=error.pieces).with_default(
                *error.headers[0]
            )
        body = self.body.encode() if isinstance(self.body, str) else self.body
        return Reply(status=self.status, headers=headers, pieces=(body,))


@dataclass(frozen=True)
class Reset(Fault):
    """Reset the TCP connection (RST).

    Attributes:
        at: "start", when the request has been read, before any byte of the answer; "headers", after the first `after`
            bytes of the head; "body", after the first `after` bytes of the body (but always before its last); "end",
            after the last byte of an answer that promised to keep the connection.
        framing: how the end of the body is marked: by "length", "chunked", or by length in "gzip"; None, as usual.
    """

    at: Literal["start", "headers", "body", "end"] = "start"
    _: KW_ONLY
    after: int = 10
    framing: Framing = None

    def apply(self, reply: Reply) -> Reply:
        """The answer, framed as asked for, and broken off."""
        if self.framing == "gzip":
            reply = replace(reply, pieces=(gzip.compress(reply.body),), streamed=False)
            reply = reply.with_headers((("content-encoding", "gzip"),))
        elif self.framing is not None:
            reply = replace(reply, streamed=self.framing == "chunked")
        return replace(reply, ending="reset", cut=self.after if self.at == "body" else None)


@dataclass(frozen=True)
class HangUp(Fault):
    """Close the connection cleanly after the answer, with `Connection: close`, or without it unless `announced`."""

    _: KW_ONLY
    announced: bool = True

    def apply(self, reply: Reply) -> Reply:
        """The answer, followed by the end of the connection."""
        return replace(reply, ending="close" if self.announced else "drop")


@dataclass(frozen=True)
class Slow(Fault):
    """Send the body `size` bytes at a time, one every `every` seconds."""

    size: int
    every: float

    def apply(self, reply: Reply) -> Reply:
        """The answer in small pieces."""
        body = reply.body
        pieces = tuple(body[start : start + self.size] for start in range(0, len(body), self.size))
        return replace(reply, pieces=pieces, pause=self.every)


@dataclass(frozen=True)
class Hang(Fault):
    """Do nothing for this many seconds, then answer."""

    seconds: float


@dataclass(frozen=True)
class Edit(Fault):
    """Change fields of the JSON object in a successful (200) answer; None removes a field."""

    fields: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, reply: Reply) -> Reply:
        """The answer with its fields changed; an answer other than 200 is unchanged."""
        if reply.status != 200:
            return reply
        content = {**json.loads(reply.body), **self.fields}
        body = json.dumps({key: value for key, value in content.items() if value is not None})
        return replace(reply, pieces=(body.encode(),))


class FaultQueue:
    """The faults that wait for requests, in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[tuple[str, Fault]] = []

    def add(self, faults: Iterable[Fault | int | None], path: str) -> None:
        """Queue one fault for each of the next requests whose path starts with `path`."""
        wanted = [Answer(fault) if isinstance(fault, int) else fault or Fault() for fault in faults]
        with self._lock:
            self._faults.extend((path, fault) for fault in wanted)

    def take(self, path: str) -> Fault:
        """The fault for a request."""
        with self._lock:
            for index, (prefix, fault) in enumerate(self._faults):
                if path.startswith(prefix):
                    del self._faults[index]
                    return fault
        return Fault()

    def __len__(self) -> int:
        return len(self._faults)
