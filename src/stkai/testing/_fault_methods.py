"""The methods with which a test says what is to go wrong."""

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
    """Faults are queued; each affects the next request whose path starts with `path`, once.

    `fail_with` and `reset(at="start")` replace the service, which does not see the request; with the others the service
    has done its work (and counted the request), and only the answer suffers.
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
        """Answer the next requests with these statuses, one each; None lets one through.

        Without a `body`, the answer is a short JSON error. Any status may be given, 200 as well.
        """
        for status in statuses:
            self.fault(Normal() if status is None else Answer(status, headers=headers, body=body), path=path)

    def fail_tokens(self, *what: int | TokenFault) -> None:
        """Make the next token requests fail, one each.

        Takes a status, or, with status 200: "garbage" (broken JSON), "html" (a page), "huge" (10 MB), "empty",
        "no_token", "no_expiry" (no `expires_in`) or "negative_expiry". For a slow one:
        `hang(2.0, path=server.token_path)`; for a redirect:
        `fail_with(302, headers={"location": url}, path=server.token_path)`.
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
        """Reset the connection (RST) of the next request, or of the next `times` requests.

        At the "start", before any answer; in the "headers", after the first `after` bytes of the head; in the
        "body", after its first `after` bytes (always before its last one); at the "end", after the last byte of an
        answer that promised to keep the connection. `framing` says how the end of the body is marked: by "length",
        "chunked", or by length in "gzip"; None, as usual.
        """
        self.fault(*[Reset(at, after=after, framing=framing)] * times, path=path)

    def hang_up(self, *, announced: bool = True, times: int = 1, path: str = API) -> None:
        """Close the connection after the next answer; unless `announced`, without sending `Connection: close`."""
        self.fault(*[HangUp(announced=announced)] * times, path=path)

    def slow(self, size: int, every: float, *, times: int = 1, path: str = API) -> None:
        """Send the next body `size` bytes at a time, one piece every `every` seconds."""
        self.fault(*[Slow(size, every)] * times, path=path)

    def hang(self, seconds: float, *, times: int = 1, path: str = API) -> None:
        """Do nothing for this many seconds, then handle the next request as usual."""
        self.fault(*[Hang(seconds)] * times, path=path)

    def fault(self, *faults: Fault, path: str = API) -> None:
        """Queue any faults for the next requests whose path starts with `path`."""
        self._faults.add(path, faults)

    def clear_faults(self) -> None:
        """Forget the faults that no request has met yet."""
        self._faults.clear()

    @property
    def faults_left(self) -> int:
        """How many faults no request has met yet."""
        return len(self._faults)
