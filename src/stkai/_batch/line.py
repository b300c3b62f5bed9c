"""A line of the input that is being sent."""

from base64 import b64encode
from collections.abc import Callable
from typing import Any, Final

import httpx

from .._headers import default_headers
from .formats import Target

LINE: Final = "stkai.batch.line"
"""The request extension that holds the line."""


class Line:
    """A line that is being sent.

    Attributes:
        number: the line's number.
        custom_id: as JSON.
        execution: the id of the execution that it created, once known.
        may_leave: whether it can be dropped when the run ends: it was not sent, or was refused, or can be polled later.
    """

    __slots__ = ("_leave", "custom_id", "execution", "may_leave", "number")

    def __init__(self, number: int, custom_id: str, execution: str | None = None) -> None:
        self.number, self.custom_id, self.execution = number, custom_id, execution
        self.may_leave = True
        self._leave: Callable[[], object] | None = None

    def starts(self, leave: Callable[[], object]) -> None:
        """Note that its task has started; `leave` ends the task."""
        self._leave = leave

    def leave(self) -> None:
        """Drop the line, if it may be dropped."""
        if self.may_leave and self._leave is not None:
            self._leave()


def line_of(request: httpx.Request) -> Line | None:
    """The line that a request is for, if any."""
    line: Line | None = request.extensions.get(LINE)
    return line


def request_for(line: Line, target: Target, key: str, extensions: dict[str, Any]) -> httpx.Request:
    """The request for a line, with the default headers and the line's idempotency key."""
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
