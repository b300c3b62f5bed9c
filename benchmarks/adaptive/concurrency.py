"""A limit on requests in flight that adapts by AIMD, as in Netflix's concurrency-limits, to compare it with a rate."""

import httpx
import trio

from .site import Site

_START = 4.0
_CUT = 0.9
_OVERLOADED = frozenset({429, 503, 529})


class ConcurrencyTransport(httpx.AsyncBaseTransport):
    """Limits the requests in flight: one more for each round of successes, a tenth less when one is refused."""

    def __init__(self, site: Site) -> None:
        self._inner, self._clock = site.wire, site.clock
        self._limit, self._cut_at = _START, -1.0
        self._slots = trio.CapacityLimiter(int(_START))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async with self._slots:
            sent = self._clock.monotonic()
            response = await self._inner.handle_async_request(request)
        if response.status_code not in _OVERLOADED:
            self._limit += 1 / self._limit
        elif sent > self._cut_at:
            self._limit, self._cut_at = max(1.0, _CUT * self._limit), self._clock.monotonic()
        self._slots.total_tokens = int(self._limit)
        return response
