"""The methods with which a test says what goes wrong."""

from typing import Literal

from ._faults import (
    Answer,
    Fault,
    Faults,
    Framing,
    Hang,
    HangUp,
    HeadersLike,
    Normal,
    Reset,
    Slow,
    TokenFault,
    token_fault,
)
from ._service import API, TOKEN_PATH


class FaultMethods:
    """Faults are queued; each goes to the next request whose path starts with `path`, once.

    `fail_with` and `reset(at="start")` replace the service, which never sees the request. With all others the service
    has done its work and counted the request, and only the answer is affected.
    """

    def __init__(self) -> None:
        self._faults = Faults()

    def fail_with(
        self,
        *statuses: int | None,
        headers: HeadersLike = (),
        body: bytes | str | None = None,
        path: str = API,
    ) -> None:
        """Answer the next requests with these statuses, one each; None lets a request through.

        Without a `body`, the answer is a short JSON error. Any status is allowed, including 200.
        """
        for status in statuses:
            self.fault(Normal() if status is None else Answer(status, headers=headers, body=body), path=path)

    def fail_tokens(self, *what: int | TokenFault) -> None:
        """Make the next token requests fail, one each.

        With a status, or with 200 and "garbage" (broken JSON), "html" (a page), "huge" (10 MB), "empty", "no_token",
        "no_expiry" (no `expires_in`) or "negative_expiry". For a slow one: `hang(2.0, path=server.token_path)`; for a
        redirect: `fail_with(302, headers={"location": url}, path=server.token_path)`.
        """
        self.fault(*map(token_fault, what), path=TOKEN_PATH)

    def reset(
        self,
        at: Literal["start", "headers", "body", "end"] = "start",
        *,
        after: int = 10,
        framing: Framing = None,
        times: int = 1,
        path: str = API,
    ) -> None:
        """Reset the connection (RST) of the next request, or the next `times` requests.

        `at`: "start", before any answer; "headers", after the first `after` bytes of the head; "body", after the first
        `after` bytes of the body, but before the last; "end", after the last byte of an answer that promised to keep
        the connection. `framing` says how the end of the body is marked: "length", "chunked", or "gzip" (by length,
        compressed); None leaves it as it is.
        """
        self.fault(*[Reset(at, after=after, framing=framing)] * times, path=path)

    def hang_up(self, *, announced: bool = True, times: int = 1, path: str = API) -> None:
        """Close the connection after the next answer; without `Connection: close` unless `announced`."""
        self.fault(*[HangUp(announced=announced)] * times, path=path)

    def slow(self, size: int, every: float, *, times: int = 1, path: str = API) -> None:
        """Send the next body in pieces of `size` bytes, one every `every` seconds."""
        self.fault(*[Slow(size, every)] * times, path=path)

    def hang(self, seconds: float, *, times: int = 1, path: str = API) -> None:
        """Do nothing for that many seconds, then handle the next request as usual."""
        self.fault(*[Hang(seconds)] * times, path=path)

    def fault(self, *faults: Fault, path: str = API) -> None:
        """Queue faults for the next requests whose path starts with `path`."""
        self._faults.add(path, faults)

    def clear_faults(self) -> None:
        """Drop the faults that no request has used yet."""
        self._faults.clear()

    @property
    def faults_left(self) -> int:
        """How many faults no request has used yet."""
        return len(self._faults)
