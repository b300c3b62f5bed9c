"""A line of the input on its way."""

from collections.abc import Callable
from typing import Final

import httpx

from .formats import Target

LINE: Final = "stkai.batch.line"
"""The extension of a request that says which line it is for."""


class Line:
    """A line that is being sent.

    Attributes:
        number: of the line.
        target: what is sent for it; None where all that is left is to poll its execution.
        execution: what it has created, once that is known.
        may_leave: it can be let go when the run ends: nothing was sent, or it was refused, or it can be polled later.
    """

    __slots__ = ("_leave", "custom_id", "execution", "may_leave", "number", "target")

    def __init__(
        self, number: int, custom_id: str, target: Target | None, execution: str | None = None
    ) -> None:
        self.number, self.custom_id, self.target, self.execution = number, custom_id, target, execution
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
