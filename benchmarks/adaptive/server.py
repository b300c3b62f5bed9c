"""The simulated server, as the innermost transport of every stack, and the network in front of it."""

import random
from datetime import datetime
from typing import NamedTuple

import httpx
import trio

from stkai.testing._replies import Reply
from stkai.testing._service import Bucket, FixedWindow, ServerQuota, SlidingWindow, refusal

from .models import CountingWindow, LeakyBucket, RandomRefusals
from .rate_headers import rate_headers
from .scenario import Scenario
from .virtual import TrioClock


class Arrival(NamedTuple):
    """A request at the server: when, from which process, and whether the quota let it in."""

    time: float
    process: int
    accepted: bool


class Server:
    """Counts the requests of all processes against one quota, and remembers them."""

    def __init__(self, scenario: Scenario, rng: random.Random) -> None:
        self.arrivals: list[Arrival] = []
        self._rng = rng
        self._clock = TrioClock()
        self._quota = _make_quota(scenario, rng)
        self._quotas = scenario.quotas
        self._scenario = scenario
        self._refusals = self._working = 0

    def wire(self, process: int) -> httpx.AsyncBaseTransport:
        """The connection of one process."""
        return _Wire(self, process)

    async def handle(self, request: httpx.Request, process: int) -> httpx.Response:
        await trio.sleep(self._rng.uniform(*self._scenario.network))
        now, utcnow = self._clock.monotonic(), self._clock.utcnow()
        self._quota.max_requests = max(pair for pair in self._quotas if pair[0] <= now)[1]
        refused = self._refusal(now, utcnow)
        headers = self._headers(now, utcnow)
        self.arrivals.append(Arrival(now, process, refused is None))
        back = self._rng.uniform(*self._scenario.network)
        if refused is not None:
            await trio.sleep(back)
            return httpx.Response(refused.status, headers=refused.headers + headers, request=request)
        self._working += 1
        delay = self._quota.delay if isinstance(self._quota, LeakyBucket) else 0.0
        await trio.sleep(delay + self._rng.uniform(*self._scenario.service) * self._slowness())
        self._working -= 1
        await trio.sleep(back)
        return httpx.Response(200, headers=headers, request=request)

    def _slowness(self) -> float:
        """How many times longer the work takes because there is too much of it."""
        scenario = self._scenario
        if scenario.in_flight is None or scenario.busy is not None:
            return 1.0
        return max(1.0, self._working / scenario.in_flight)

    def _refusal(self, now: float, utcnow: datetime) -> Reply | None:
        """The refusal of a request that is one too many, or None. Work takes time; refusing takes none."""
        scenario = self._scenario
        if scenario.in_flight is None:
            refused = refusal(self._quota, scenario.retry_after, now, utcnow)
        else:
            refused = self._too_busy()
        if refused is not None:
            self._refusals += 1
            asked = scenario.retry_after_of(self._refusals)
            if asked is not None:
                return Reply(status=429, headers=(("retry-after", f"{asked:g}"),))
        return refused

    def _headers(self, now: float, utcnow: datetime) -> tuple[tuple[str, str], ...]:
        """The rate limit headers of an answer."""
        style = self._scenario.headers
        if style is None or not isinstance(self._quota, FixedWindow):
            return ()
        return rate_headers(style, self._quota, now, utcnow)

    def _too_busy(self) -> Reply | None:
        """The refusal of a request for which there is no free place, or None."""
        busy, most = self._scenario.busy, self._scenario.in_flight or 0
        if busy is None or self._working < most:
            return None
        says_when = busy == 429 and self._scenario.retry_after is not None
        return Reply(status=busy, headers=(("retry-after", "1"),) if says_when else ())


class _Wire(httpx.AsyncBaseTransport):
    def __init__(self, server: Server, process: int) -> None:
        self._server, self._process = server, process

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._server.handle(request, self._process)


def _make_quota(scenario: Scenario, rng: random.Random) -> ServerQuota:
    if scenario.refused:
        return RandomRefusals(scenario.quota, scenario.window, scenario.refused, rng)
    if scenario.server == "fixed":
        return FixedWindow(scenario.quota, scenario.window)
    if scenario.server == "sliding":
        return SlidingWindow(scenario.quota, scenario.window)
    if scenario.server in ("leaky", "delaying"):
        delays = scenario.server == "delaying"
        return LeakyBucket(scenario.quota, scenario.window, burst=scenario.burst, delays=delays)
    if scenario.server == "counting":
        return CountingWindow(scenario.quota, scenario.window)
    return Bucket(scenario.quota, scenario.window, depth=scenario.depth)
