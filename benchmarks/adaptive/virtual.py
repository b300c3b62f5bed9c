"""Virtual time: a stkai clock that reads trio's, and a trio whose clock jumps to the next event."""

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import trio
import trio.testing
from trio._core import _run

T = TypeVar("T")

_EPOCH = datetime(2025, 1, 1, tzinfo=UTC)
"""The wall clock at virtual second 0; any date will do, but windows start with the minute on both clocks."""


def stream(*names: object) -> random.Random:
    """Random numbers that depend only on the names, so that parts of a run do not disturb each other."""
    return random.Random(repr(names))  # noqa: S311 - nothing here is a secret


class TrioClock:
    """The time of the running trio, real or virtual."""

    def monotonic(self) -> float:
        return trio.current_time()

    def utcnow(self) -> datetime:
        return _EPOCH + timedelta(seconds=trio.current_time())

    def sleep(self, seconds: float) -> None:
        msg = "a simulated process is async: nothing in it may block the thread"
        raise RuntimeError(msg)

    async def asleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


def run_virtually(body: Callable[[], Awaitable[T]], seed: int) -> T:
    """Run `body` in virtual time, from second 0 on; the same seed gives the same run, event by event."""
    # trio shuffles the tasks that wake at the same instant, so that programs do not rely on their order, and has no
    # public way to control that. Here the first to wake gets a window's last permit: the shuffle must follow the seed.
    settings = vars(_run)
    before = settings["_ALLOW_DETERMINISTIC_SCHEDULING"], settings["_r"]
    settings["_ALLOW_DETERMINISTIC_SCHEDULING"], settings["_r"] = True, stream("order", seed)
    try:
        return trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        settings["_ALLOW_DETERMINISTIC_SCHEDULING"], settings["_r"] = before
