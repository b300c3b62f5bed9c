"""Threads that do something at the same time, and those of other tests."""

import gc
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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


def all_threads() -> set[threading.Thread]:
    """All threads, once those have ended that make the last calls for limiters of other tests."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name in {"stkai-store", "stkai-call"}:
            thread.join(10.0)
    return set(threading.enumerate())
