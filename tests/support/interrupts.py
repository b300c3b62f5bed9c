"""Interrupts (Ctrl-C, the exception of a signal handler) at a given point of the code."""

import dis
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
        places: folders or files of stkai, or absolute paths of other files; only their points count.
    """

    _AFTER = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME"})

    def __init__(self, number: int, *places: str) -> None:
        self.left, self._places = number, places

    def trace(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        is_ours = name.startswith(_LIBRARY) and any(place in name for place in self._places)
        if not is_ours and name not in self._places:
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


@contextmanager
def ctrl_c(when: Callable[[], object]) -> Iterator[None]:
    """Press Ctrl-C once the condition holds; the block must end with the KeyboardInterrupt."""
    main, is_over, pressed = threading.main_thread(), threading.Event(), list[bool]()

    def handle(*_: object) -> None:
        if not pressed:
            pressed.append(True)
            raise KeyboardInterrupt

    def press() -> None:
        while not when() and not is_over.is_set():
            time.sleep(0)
        # Also while the main thread waits in C: `_thread.interrupt_main` would not wake it. Python misses a signal that
        # arrives when it has just looked for one and is about to wait, so there are several.
        while not is_over.wait(0.01):
            signal.pthread_kill(main.ident or 0, signal.SIGINT)

    thread = threading.Thread(target=press)
    before = signal.signal(signal.SIGINT, handle)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        is_over.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
