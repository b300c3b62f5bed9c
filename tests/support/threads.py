"""Threads that do something at the same time, and those that a test has started."""

import gc
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar
from unittest.mock import patch

T = TypeVar("T")


def together(*work: Callable[[], T], switching: float | None = None) -> list[T]:
    """What each piece of work returns, each in a thread of its own; they begin together.

    Args:
        switching: seconds after which a thread makes way for another. After a microsecond, threads meet between any
            two lines.
    """
    begin = threading.Barrier(len(work))

    def run(one: Callable[[], T]) -> T:
        begin.wait()
        return one()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval if switching is None else switching)
    try:
        with ThreadPoolExecutor(len(work)) as pool:
            return [future.result() for future in [pool.submit(run, one) for one in work]]
    finally:
        sys.setswitchinterval(interval)


def wait_until(condition: Callable[[], bool], found: Callable[[], object] = lambda: "never happened") -> None:
    """Wait for what another thread or process brings about; `found` says what there is instead after half a minute."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, found()
        select.select((), (), (), 0.001)  # Unlike time.sleep, this may be used in all tests.


@contextmanager
def own_threads() -> Iterator[Callable[[], list[str]]]:
    """Yields a function that names and places the running threads that this one, or one of them, has started since.

    Those that other tests have left may start others at any time. Nor does this thread collect what they have left,
    which makes its last calls in threads.
    """
    start, own = threading.Thread.start, {threading.current_thread()}

    def note(thread: threading.Thread) -> None:
        if threading.current_thread() in own:
            own.add(thread)
        start(thread)

    def running() -> list[str]:
        frames = sys._current_frames()
        others = [thread for thread in own if thread.is_alive() and thread is not threading.current_thread()]
        return [f"{thread.name}: {_place(frames.get(thread.ident or 0))}" for thread in others]

    gc.collect()
    gc.disable()
    try:
        with patch.object(threading.Thread, "start", note):
            yield running
    finally:
        gc.enable()


def _place(frame: FrameType | None) -> str:
    return "".join(traceback.format_stack(frame)) if frame else "about to begin or end"
