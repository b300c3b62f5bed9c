"""The journal of `send_all`: which requests were sent, and which outcomes were handed out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

from .._errors import ConfigurationError
from .errors import OutcomeUnknownError
from .fates import NEW, SENT, Fates
from .journal import Journal
from .replay import Replay, replay

Fate = Literal["new", "unknown", "done"]


class NoLedger:
    """Remembers nothing: every request is new."""

    def begin(self, index: int) -> Fate:
        """What is known about a request; a new one is about to be sent."""
        return "new"

    def unknown(self, index: int) -> OutcomeUnknownError:
        """The error for a request whose outcome is unknown."""
        msg = (
            f"request {index} was in flight when an earlier run was killed: the server may have acted on it."
            " It was not sent again; to send it, use a new journal"
        )
        return OutcomeUnknownError(msg)

    @contextmanager
    def handing_out(self, index: int) -> Iterator[None]:
        """The outcome counts as handed out when the caller comes back for the next one, or leaves the loop."""
        yield

    def close(self) -> None:
        """Close the journal."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FileLedger(NoLedger):
    """Remembers in a journal, by the indices of the requests."""

    def __init__(self, journal: Journal, known: Replay) -> None:
        self._journal, self._fates, self._torn = journal, known.fates, known.torn

    def begin(self, index: int) -> Fate:
        fate = self._fates[index]
        if fate not in {NEW, SENT}:
            return "done"
        if self._torn.may_be(index) or fate == SENT:
            return "unknown"
        self._journal.sent(index)
        return "new"

    @contextmanager
    def handing_out(self, index: int) -> Iterator[None]:
        try:
            yield
        finally:
            self._journal.done(index)

    def close(self) -> None:
        self._journal.close()


Ledger = NoLedger


def open_ledger(path: str | os.PathLike[str] | None, max_in_flight: int) -> Ledger:
    """Open or create the journal at `path`; without a path, nothing is remembered.

    Raises:
        ConfigurationError: another run uses it, or it is the journal of `stkai batch`, or not a journal at all.
    """
    if path is None:
        return NoLedger()
    journal = Journal.open(Path(path))
    try:
        if journal.header is None:
            journal.begin("send_all", {})
        elif journal.header.kind != "send_all":
            msg = f"{path} is the journal of `stkai batch`; choose another file for send_all"
            raise ConfigurationError(msg)
        known = replay(journal, Fates())
        journal.limit(max_in_flight)
    except BaseException:
        journal.close()
        raise
    return FileLedger(journal, known)
