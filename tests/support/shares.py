"""Members of a share, one permit after the other."""

from typing import Any

import httpx

from stkai import Clock, SystemClock
from stkai.testing import FakeClock
from stkai.transports import Answer, Operation, Run, Turn

REAL = SystemClock()


def wait_for(policy: Any, clock: Clock = REAL, turn: Turn | None = None) -> float:
    """Take a permit as a flow does; return the seconds it took."""
    turn = turn or Turn()
    start = clock.monotonic()
    while wait := policy.ask(turn, clock.monotonic()):
        if isinstance(wait, Run):
            wait.sync(60.0)
        else:
            assert not isinstance(wait, Operation)
            clock.sleep(min(wait, turn.nap))
    return clock.monotonic() - start


def wait_at(now: float, policy: Any, clock: FakeClock, turn: Turn) -> float:
    """Move the clock to `now`, and ask once as a flow does, after all calls to a store; returns the limiter's wait."""
    clock.advance(now - clock.monotonic())
    while isinstance(wait := policy.ask(turn, now), Run):
        wait.sync(60.0)
    assert isinstance(wait, float)
    return wait


def answer(clock: FakeClock, status: int = 200, **headers: str) -> Answer:
    """An answer that arrives now, to a request that was sent just before."""
    now = clock.monotonic()
    return Answer(now - 0.01, now, httpx.Response(status, headers=headers), None, clock.utcnow, 0.0)
