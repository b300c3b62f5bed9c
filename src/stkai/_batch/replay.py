"""Reads back from a journal what is known about each line, in addition to the outputs."""

import re
from dataclasses import dataclass, field
from typing import Final

from .fates import DONE as HANDED_OUT
from .fates import NEW, SENT, Fates
from .journal import Journal

_TORN: Final = re.compile(rb"s(?: ([0-9]*))?")


@dataclass(slots=True)
class Replay:
    """What is known after reading a journal.

    Attributes:
        fates: the fate of each line; the outputs take precedence.
        executions: executions created by lines that have no outcome, by line number.
        in_flight: the most lines that were in flight at once.
        has_ended: whether all of stdin has been copied.
        torn: the lines that a torn last record may refer to.
    """

    fates: Fates
    executions: dict[int, str] = field(default_factory=dict)
    in_flight: int = 0
    has_ended: bool = False
    torn: "Torn" = field(default_factory=lambda: Torn(None, 0))


class Torn:
    """A last record that was only partly written: it shows that a line was sent, but not exactly which one.

    Lines are read in order, so it was one of the first lines without an outcome.
    """

    __slots__ = ("_left", "_prefix")

    def __init__(self, prefix: bytes | None, in_flight: int) -> None:
        self._prefix = prefix or b""
        self._left = 0 if prefix is None else in_flight

    def may_be(self, number: int) -> bool:
        """Whether it may refer to this line. Call this once for each line without an outcome, in order."""
        if not self._left:
            return False
        self._left -= 1
        return b"%d".__mod__(number).startswith(self._prefix)


def replay(journal: Journal, fates: Fates) -> Replay:
    """Read a journal to its end and cut off a torn tail."""
    found = Replay(fates)
    for kind, number, rest in journal.records():
        if kind == b"s":
            if fates[number] == NEW:
                fates[number] = SENT
        elif kind == b"n":
            if fates[number] == SENT:
                fates[number] = NEW
            found.executions.pop(number, None)
        elif kind == b"x":
            if fates[number] == SENT:
                found.executions[number] = rest.decode()
        elif kind == b"d":
            fates[number] = HANDED_OUT
        elif kind == b"f":
            found.in_flight = number
        elif kind == b"e":
            found.has_ended = True
    journal.cut()
    torn = _TORN.fullmatch(journal.torn)
    if torn is not None:
        found.torn = Torn(torn[1] or b"", found.in_flight)
    return found
