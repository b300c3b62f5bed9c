"""What the server receives and what it answers: records of requests, and replies before they reach the network."""

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

Headers = tuple[tuple[str, str], ...]


@dataclass(kw_only=True)
class RequestRecord:
    """One request as the server saw it.

    Attributes:
        time: when its last byte had arrived, in seconds of the server's clock.
        method: GET, POST and so on.
        path: without the query.
        query: as sent, without the question mark.
        headers: names in lower case, values as sent; a name may come twice.
        body: the bytes.
        connection: the number of its TCP connection, from 1 up; equal numbers mean keep-alive.
        status: the status of the answer; None while there is none.
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
    """An answer: a status, headers and a body, and how they travel.

    Attributes:
        pieces: the body, as it is written.
        pause: seconds between two pieces.
        streamed: whether the body goes out chunked; otherwise its length is known.
        ending: what follows it: "keep" the connection, "close" it, as a `Connection: close` header announces, "drop" it
            without one, or "reset" it.
        cut: break off after this many bytes of the body, always before its last; None sends all of it.
    """

    status: int = 200
    headers: Headers = ()
    pieces: tuple[bytes, ...] = (b"",)
    pause: float = 0.0
    streamed: bool = False
    ending: Literal["keep", "close", "drop", "reset"] = "keep"
    cut: int | None = None

    @property
    def body(self) -> bytes:
        """All pieces joined."""
        return b"".join(self.pieces)

    @property
    def head(self) -> bytes:
        """The status line and the headers, without the line break that ends them."""
        lines = (f"HTTP/1.1 {self.status} OK", *(f"{name}: {value}" for name, value in self.headers))
        return "\r\n".join(lines).encode()

    def sent(self) -> tuple[bytes, ...]:
        """The pieces that are written."""
        if self.cut is None:
            return self.pieces
        return (self.body[: max(0, min(self.cut, len(self.body) - 1))],)

    def with_headers(self, headers: Headers) -> "Reply":
        """The same answer with more headers."""
        return replace(self, headers=self.headers + headers)

    def with_default(self, name: str, value: str) -> "Reply":
        """The same answer with a header, unless it already has that one."""
        return self if any(key == name for key, _ in self.headers) else self.with_headers(((name, value),))


def json_reply(content: Any, *, status: int = 200, headers: Headers = ()) -> Reply:
    """A JSON answer."""
    body = json.dumps(content).encode()
    return Reply(status=status, headers=(("content-type", "application/json"), *headers), pieces=(body,))


def error_reply(status: int, error: str, description: str, headers: Headers = ()) -> Reply:
    """A refusal, in the format of RFC 6749, section 5.2."""
    content = {"error": error, "error_description": description}
    return json_reply(content, status=status, headers=headers)
