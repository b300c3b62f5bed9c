"""A line of the input on its way."""

from base64 import b64encode
from collections.abc import Callable
from typing import Any, Final

import httpx

from .._headers import default_headers
from .formats import Target

LINE: Final = "stkai.batch.line"
"""The extension of a request that says which line it is for."""


class Line:
    """A line that is being sent.

    Attributes:
        number: of the line.
        custom_id: as JSON.
        execution: what it has created, once that is known.
        may_leave: it can be let go when the run ends: nothing was sent, or it was refused, or it can be polled later.
    """

    __slots__ = ("_leave", "custom_id", "execution", "may_leave", "number")

    def __init__(self, number: int, custom_id: str, execution: str | None = None) -> None:
        self.number, self.custom_id, self.execution = number, custom_id, execution
        self.may_leave = True
        self._leave: Callable[[], object] | None = None

    def starts(self, leave: Callable[[], object]) -> None:
        """Its task runs; `leave` ends that."""
        self._leave = leave

    def leave(self) -> None:
        """Let it go, if that is possible."""
        if self.may_leave and self._leave is not None:
            self._leave()


def line_of(request: httpx.Request) -> Line | None:
    """The line that a request is for, if it is for one."""
    line: Line | None = request.extensions.get(LINE)
    return line


def request_for(line: Line, target: Target, key: str, extensions: dict[str, Any]) -> httpx.Request:
    """The request for a line, with the headers that every client sends, and a key of its own."""
    headers = [*default_headers(), (b"Idempotency-Key", key.encode())]
    if target.content is not None:
        headers.append((b"Content-Type", b"application/json"))
    url = target.url
    if url.userinfo:
        headers.append((b"Authorization", _basic(url)))
        url = url.copy_with(userinfo=b"")
    return httpx.Request(
        target.method, url, headers=headers, content=target.content, extensions={**extensions, LINE: line}
    )


def _basic(url: httpx.URL) -> bytes:
    """The credentials in a url, as httpx's own clients send them (RFC 7617)."""
    return b"Basic " + b64encode(f"{url.username}:{url.password}".encode())
