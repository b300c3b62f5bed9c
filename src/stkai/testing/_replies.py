"""The requests that the server receives, the replies that it sends, including a model's, and faults that spoil them.

A model repeats the last message; when streaming, it sends one word at a time.
"""

import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from http.client import responses
from typing import Any, Literal

from .._checks import COUNT, POSITIVE_COUNT, SECONDS, STATUS, check_choice, check_number

Headers = tuple[tuple[str, str], ...]


@dataclass(kw_only=True)
class RequestRecord:
    """One request as the server saw it.

    Attributes:
        time: when its last byte arrived, in seconds of the server's clock.
        method: GET, POST and so on.
        path: without the query.
        query: as sent, without the question mark.
        headers: names in lower case, values as sent; a name may occur more than once.
        body: the bytes.
        connection: the number of its TCP connection, from 1; equal numbers mean keep-alive.
        status: the status of the answer; None until there is one.
    """

    time: float
    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    connection: int
    status: int | None = None

    def header(self, name: str) -> str | None:
        """The first value of a header; None if it was not sent."""
        return next((value for key, value in self.headers if key == name.lower()), None)

    @property
    def authorization(self) -> str | None:
        """The value of the `Authorization` header."""
        return self.header("authorization")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer: status, headers and body, and how to send them."""

    status: int = 200
    headers: Headers = ()
    pieces: tuple[bytes, ...] = (b"",)  # The body, in the pieces that are written.
    pause: float = 0.0  # Seconds between two pieces.
    streamed: bool = False  # Whether the body is sent chunked; otherwise with its length.
    # Afterwards, "keep" the connection, "close" it, announced by `Connection: close`, "drop" it without that header, or
    # "reset" it.
    ending: Literal["keep", "close", "drop", "reset"] = "keep"
    cut: int | None = None  # Break off after this many bytes of the body, always before its last.

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def head(self) -> bytes:
        """The status line and the headers, without the line break that ends them."""
        lines = (f"HTTP/1.1 {self.status} OK", *(f"{name}: {value}" for name, value in self.headers))
        return "\r\n".join(lines).encode()

    def sent(self) -> tuple[bytes, ...]:
        if self.cut is None:
            return self.pieces
        return (self.body[: max(0, min(self.cut, len(self.body) - 1))],)

    def with_default(self, name: str, value: str) -> "Reply":
        if any(key == name for key, _ in self.headers):
            return self
        return replace(self, headers=(*self.headers, (name, value)))


def json_reply(content: Any, *, status: int = 200, headers: Headers = ()) -> Reply:
    body = json.dumps(content).encode()
    return Reply(status=status, headers=(("content-type", "application/json"), *headers), pieces=(body,))


def error_reply(status: int, error: str, description: str, headers: Headers = ()) -> Reply:
    """A refusal, in the format of RFC 6749, section 5.2."""
    content = {"error": error, "error_description": description}
    return json_reply(content, status=status, headers=headers)


def completion(asked: dict[str, Any]) -> Reply:
    """The answer of `/chat/completions`, as in OpenAI's API and those of Groq, Mistral and Together."""
    words = last_words(asked)
    common: dict[str, Any] = {"id": "chat-1", "model": "echo", "created": 1_700_000_000}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": "".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        count = len(words)
        used = {"prompt_tokens": count, "completion_tokens": count, "total_tokens": 2 * count}
        return json_reply({**common, "object": "chat.completion", "choices": [choice], "usage": used})
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": word}, None) for word in words]
    chunks = (
        {
            **common,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }
        for delta, reason in [*deltas, ({}, "stop")]
    )
    return event_stream(chunks, last="data: [DONE]\n\n")


def last_words(asked: dict[str, Any]) -> list[str]:
    """The words of the last message."""
    messages = asked.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else {}
    content = last.get("content", "") if isinstance(last, dict) else ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return words_of(str(content))


def words_of(text: str) -> list[str]:
    """A text, split into words; each keeps its spaces."""
    return re.findall(r"\s*\S+\s*", text)


def event_stream(events: Iterable[dict[str, Any]], *, last: str = "") -> Reply:
    """A reply that sends one event at a time."""
    texts = [*(f"data: {json.dumps(event)}\n\n" for event in events), last]
    return Reply(
        headers=(("content-type", "text/event-stream"), ("cache-control", "no-cache")),
        pieces=tuple(text.encode() for text in texts if text),
        streamed=True,
    )


class Fault:
    """Base class of faults; changes nothing by itself."""

    def apply(self, reply: Reply) -> Reply:
        return reply


@dataclass(frozen=True)
class Answer(Fault):
    """Send this answer instead; without a `body`, with a short JSON error."""

    status: int
    _: KW_ONLY
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    body: bytes | str | None = None

    def __post_init__(self) -> None:
        check_number("status", self.status, STATUS)

    def reply(self) -> Reply:
        given = self.headers.items() if isinstance(self.headers, Mapping) else self.headers
        headers = tuple((name.lower(), value) for name, value in given)
        if self.body is None:
            error = error_reply(self.status, "fault", responses.get(self.status, "a fault on request"))
            return replace(error, headers=headers).with_default(*error.headers[0])
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
    framing: Literal["length", "chunked", "gzip"] | None = None

    def __post_init__(self) -> None:
        check_choice("at", self.at, "start", "headers", "body", "end")
        check_number("after", self.after, COUNT)
        check_choice("framing", self.framing, "length", "chunked", "gzip", None)

    def apply(self, reply: Reply) -> Reply:
        if self.framing == "gzip":
            headers = (*reply.headers, ("content-encoding", "gzip"))
            reply = replace(reply, headers=headers, pieces=(gzip.compress(reply.body),), streamed=False)
        elif self.framing is not None:
            reply = replace(reply, streamed=self.framing == "chunked")
        return replace(reply, ending="reset", cut=self.after if self.at == "body" else None)


@dataclass(frozen=True)
class HangUp(Fault):
    """Close the connection cleanly after the answer, with `Connection: close`, or without it unless `announced`."""

    _: KW_ONLY
    announced: bool = True

    def apply(self, reply: Reply) -> Reply:
        return replace(reply, ending="close" if self.announced else "drop")


@dataclass(frozen=True)
class Slow(Fault):
    """Send the body `size` bytes at a time, one piece every `every` seconds."""

    size: int
    every: float

    def __post_init__(self) -> None:
        check_number("size", self.size, POSITIVE_COUNT)
        check_number("every", self.every, SECONDS)

    def apply(self, reply: Reply) -> Reply:
        body = reply.body
        pieces = tuple(body[start : start + self.size] for start in range(0, len(body), self.size))
        return replace(reply, pieces=pieces, pause=self.every)


@dataclass(frozen=True)
class Hang(Fault):
    """Wait for this many seconds before answering."""

    seconds: float

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds, SECONDS)


@dataclass(frozen=True)
class Edit(Fault):
    """Change fields of the JSON object in a successful (200) answer, if it is one; None removes a field."""

    fields: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, reply: Reply) -> Reply:
        try:
            content = json.loads(reply.body) if reply.status == 200 else None
        except ValueError:
            return reply
        if not isinstance(content, dict):
            return reply
        content |= self.fields
        body = json.dumps({key: value for key, value in content.items() if value is not None})
        return replace(reply, pieces=(body.encode(),))
