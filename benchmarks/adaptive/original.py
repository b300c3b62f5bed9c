"""The adaptive limiter and the retry of stkai 0.4.18, rebuilt from their behaviour: AIMD by success and by 429."""

import httpx

from .site import RETRY, SHORTEST_SLEEP, Site

_JITTER = 0.2
"""Every factor and every sleep of the limiter varies by this much."""

_RETRY_JITTER = 0.1
"""A retry's sleep varies by this much, both ways: it may end before `Retry-After` is over."""

_LONGEST_RETRY_AFTER = 60.0


class OriginalTransport(httpx.AsyncBaseTransport):
    """A bucket whose size, and with it its rate, grows with every success and shrinks with every 429.

    The first to wake gets the permit: there is no queue. The wait for a permit is not limited here.
    """

    def __init__(self, site: Site, *, floor: float, penalty: float, recovery: float) -> None:
        self._inner, self._clock, self._rng = site.wire, site.clock, site.random
        self._most, self._window = float(site.scenario.quota), site.scenario.window
        self._least = floor * self._most
        self._penalty, self._recovery = penalty, recovery
        self._size = self._tokens = self._most
        self._filled = self._clock.monotonic()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        attempt = 0
        while True:
            await self._take_token()
            response = await self._inner.handle_async_request(request)
            if response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                self._size = min(self._most, self._size + self._most * self._vary(self._recovery, _JITTER))
                return response
            self._size = max(self._least, self._size * (1 - self._vary(self._penalty, _JITTER)))
            self._tokens = min(self._tokens, self._size)
            if attempt == RETRY.max_retries:
                return response
            pause = max(_seconds(response.headers), RETRY.initial_delay * 2**attempt)
            await self._clock.asleep(self._vary(pause, _RETRY_JITTER))
            attempt += 1

    async def _take_token(self) -> None:
        while True:
            now, rate = self._clock.monotonic(), self._size / self._window
            self._tokens = min(self._size, self._tokens + (now - self._filled) * rate)
            self._filled = now
            if self._tokens >= 1:
                self._tokens -= 1
                return
            await self._clock.asleep(max(SHORTEST_SLEEP, self._vary((1 - self._tokens) / rate, _JITTER)))

    def _vary(self, value: float, share: float) -> float:
        return value * self._rng.uniform(1 - share, 1 + share)


def _seconds(headers: httpx.Headers) -> float:
    """The wait that `Retry-After` asks for. stkai 0.4 reads no dates, and ignores waits that it considers too long."""
    try:
        asked = float(headers.get("retry-after", "0"))
    except ValueError:
        return 0.0
    return asked if asked <= _LONGEST_RETRY_AFTER else 0.0
