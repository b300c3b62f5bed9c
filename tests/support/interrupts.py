"""Interrupts (Ctrl-C, the exception of a signal handler) at a given point of the code."""

import dis
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import stkai

_LIBRARY = str(Path(stkai.__file__).parent)

needs_opcodes = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="from 3.12 on, not all opcodes are reported"
)


class Interrupted(BaseException):
    """What a signal handler raises."""


class Interrupt:
    """Raises, once, at the point of that number where Python may run a signal handler: after calls and loops.

    Args:
        number: counts the points, from 1.
        places: folders or files of stkai; only their points count.
    """

    _AFTER = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME"})

    def __init__(self, number: int, *places: str) -> None:
        self.left, self._places = number, places

    def trace(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_LIBRARY) or not any(place in name for place in self._places):
            return None
        frame.f_trace_opcodes, before = True, ""

        def step(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal before
            if event == "opcode":
                if before in self._AFTER:
                    self.left -= 1
                    if not self.left:
                        raise Interrupted
                before = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            return step

        return step

    @contextmanager
    def during(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            yield
        except Interrupted:
            pass
        finally:
            sys.settrace(before)
