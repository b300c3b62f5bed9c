"""An answer of the server, before it is sent."""

import json
from dataclasses import dataclass, replace
from typing import Any

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A status, headers and a body.

    Attributes:
        pieces: the body; more than one piece, or `streamed`, goes out chunked.
        pause: seconds between two pieces.
    """

    status: int = 200
    headers: Headers = ()
    pieces: tuple[bytes, ...] = (b"",)
    pause: float = 0.0
    streamed: bool = False

    @property
    def body(self) -> bytes:
        """All pieces joined."""
        return b"".join(self.pieces)

    def with_headers(self, headers: Headers) -> "Reply":
        """A copy with more headers."""
        return replace(self, headers=self.headers + headers)

    def with_default(self, name: str, value: str) -> "Reply":
        """A copy with this header, unless it has one already."""
        return self if any(key == name for key, _ in self.headers) else self.with_headers(((name, value),))


def json_reply(content: Any, *, status: int = 200, headers: Headers = ()) -> Reply:
    """An answer in JSON."""
    body = json.dumps(content).encode()
    return Reply(status=status, headers=(("content-type", "application/json"), *headers), pieces=(body,))


def error_reply(status: int, error: str, description: str, headers: Headers = ()) -> Reply:
    """An error in the format of RFC 6749, section 5.2."""
    content = {"error": error, "error_description": description}
    return json_reply(content, status=status, headers=headers)
