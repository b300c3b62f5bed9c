"""Signals: the first one ends a run gracefully, the second one immediately."""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, Self

INTERRUPTED: Final = 130
"""Exit code of an interrupted process."""

_NAMES: Final = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupts:
    """Handles SIGINT, SIGTERM and SIGHUP in a `with` block; signals that are ignored, as under `nohup`, stay ignored.

    Attributes:
        on_first: called on the first signal; if None, that raises KeyboardInterrupt.
        on_second: called on the second signal, before the process exits.
    """

    def __init__(self) -> None:
        self.on_first: Callable[[str], None] | None = None
        self.on_second: Callable[[], object] = int
        self._count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self._count += 1
        if self._count > 1:
            try:
                self.on_second()
            finally:
                os._exit(INTERRUPTED)
        if self.on_first is None:
            raise KeyboardInterrupt
        self.on_first(signal.Signals(number).name)
