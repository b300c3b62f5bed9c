"""What is known about a job: the state of each line, in one byte per line, and the input that it has read."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class LineState(IntEnum):
    """What is known about one line, or about one request of `send_all`."""

    NEW = 0
    """Not sent, or refused: a resumed job sends it."""
    SENT = 1
    """Sent, and no outcome is known."""
    DONE = 2
    """Its answer is in the output; for `send_all`: its outcome was handed out."""
    FAILED = 3
    """Its failure is in the failure output."""


_STATES = tuple(LineState)


class LineStates:
    """A state for each number; those never set are new."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __getitem__(self, number: int) -> LineState:
        return _STATES[self._bytes[number]] if number < len(self._bytes) else LineState.NEW

    def __setitem__(self, number: int, state: LineState) -> None:
        missing = number + 1 - len(self._bytes)
        if missing > 0:
            self._bytes.extend(bytes(missing))
        self._bytes[number] = state

    def move(self, number: int, old: LineState, new: LineState) -> bool:
        """Change a state, if it is `old`; whether it was."""
        missing = number + 1 - len(self._bytes)
        if missing > 0:
            self._bytes.extend(bytes(missing))
        if self._bytes[number] != old:
            return False
        self._bytes[number] = new
        return True

    def numbers(self, state: LineState) -> list[int]:
        """The numbers with this state, ascending."""
        return [number for number, value in enumerate(self._bytes) if value == state]


class Survey(NamedTuple):
    """The input as it was when a run began.

    Attributes:
        size: in bytes.
        sha256: of all of it.
        lines: how many of its lines belong to this job, without blank ones.
        last: the number of its last line.
    """

    size: int
    sha256: str
    lines: int
    last: int


class TornRecord:
    """A last journal record that was only partly written: a line was sent, but it is not known exactly which one.

    Lines are read in order, so it was one of the first lines without an outcome.
    """

    __slots__ = ("_left", "_prefix")

    def __init__(self, prefix: bytes | None = None, in_flight: int = 0) -> None:
        self._prefix = prefix or b""
        self._left = 0 if prefix is None else in_flight

    def may_be(self, number: int) -> bool:
        """Whether it may refer to this line. Call this once for each line without an outcome, in order."""
        if not self._left:
            return False
        self._left -= 1
        return b"%d".__mod__(number).startswith(self._prefix)


@dataclass(slots=True)
class Recovered:
    """What the outputs and the journal of earlier runs say.

    Attributes:
        states: the state of each line; the outputs take precedence over the journal.
        executions: executions created by lines that have no outcome, by line number.
        in_flight: the most lines that were in flight at once.
        survey: the input that the latest run has read.
        has_all_of_stdin: whether all of stdin has been copied.
        usage: tokens sent and received, and how many bytes of the answers they cover.
        torn: the lines that a torn last record may refer to.
    """

    states: LineStates = field(default_factory=LineStates)
    executions: dict[int, str] = field(default_factory=dict)
    in_flight: int = 0
    survey: Survey | None = None
    has_all_of_stdin: bool = False
    usage: tuple[int, int, int] = (0, 0, 0)
    torn: TornRecord = field(default_factory=TornRecord)

    def begin(self, number: int) -> LineState:
        """The state of a line whose turn has come; a line that a torn record may refer to counts as sent."""
        state = self.states[number]
        if state is LineState.DONE or state is LineState.FAILED or not self.torn.may_be(number):
            return state
        return LineState.SENT
