"""What a journal says of each line, beside what the outputs say."""

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
        fates: of each line; those that the outputs know stay as they are.
        executions: what lines without an outcome have created, by number.
        in_flight: how many lines were in flight at most.
        has_ended: whether all of stdin has been copied.
        torn: the lines that a torn record at the end may mean.
    """

    fates: Fates
    executions: dict[int, str] = field(default_factory=dict)
    in_flight: int = 0
    has_ended: bool = False
    torn: "Torn" = field(default_factory=lambda: Torn(None, 0))


class Torn:
    """A last record of which only the beginning was written: it says that a line was sent, and not quite which one.

    Lines are read in order, and those that have no outcome yet are in flight: it is one of the first of these.
    """

    __slots__ = ("_left", "_prefix")

    def __init__(self, prefix: bytes | None, in_flight: int) -> None:
        self._prefix = prefix or b""
        self._left = 0 if prefix is None else in_flight

    def may_be(self, number: int) -> bool:
        """Whether it may mean this line. Ask once for each line without an outcome, in order."""
        if not self._left:
            return False
        self._left -= 1
        return b"%d".__mod__(number).startswith(self._prefix)


def replay(journal: Journal, fates: Fates) -> Replay:
    """Read a journal to its end, and cut off a torn tail."""
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
