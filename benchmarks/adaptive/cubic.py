"""botocore's adaptive retry mode (CUBIC), put together from its own classes around the simulated server."""

import httpx
from botocore.exceptions import CapacityNotAvailableError
from botocore.retries.adaptive import ClientRateLimiter, RateClocker
from botocore.retries.bucket import Clock, TokenBucket
from botocore.retries.throttling import CubicCalculator

from .site import SHORTEST_SLEEP, Site
from .virtual import TrioClock


class CubicTransport(httpx.AsyncBaseTransport):
    """Asks botocore's limiter before it sends, and tells it what came back; only the waiting is done here."""

    def __init__(self, site: Site) -> None:
        self._inner, self._clock = site.wire, site.clock
        clock = _Clock(site.clock)
        self._limiter = ClientRateLimiter(
            rate_adjustor=CubicCalculator(starting_max_rate=0, start_time=clock.current_time()),
            rate_clocker=RateClocker(clock),
            token_bucket=_Bucket(1, clock),
            throttling_detector=_Detector(),
            clock=clock,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        while seconds := self._ask(request):
            await self._clock.asleep(seconds)
        response = await self._inner.handle_async_request(request)
        self._limiter.on_receiving_response(response=response)
        return response

    def _ask(self, request: httpx.Request) -> float:
        try:
            self._limiter.on_sending_request(request)
        except _MustWaitError as wait:
            return max(SHORTEST_SLEEP, wait.seconds)
        return 0.0


class _Clock(Clock):
    def __init__(self, clock: TrioClock) -> None:
        super().__init__()
        self._clock = clock

    def current_time(self) -> float:
        return self._clock.monotonic()


class _MustWaitError(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class _Bucket(TokenBucket):
    """Says how long to wait for a permit; botocore's would block the thread until the permit is there."""

    def acquire(self, amount: int = 1, block: bool = True) -> bool:
        try:
            return super().acquire(amount, block=False)
        except CapacityNotAvailableError:
            raise _MustWaitError((amount - self.available_capacity) / self.max_rate) from None


class _Detector:
    """Recognizes a refusal by its status; botocore's own reads the error codes of AWS."""

    def is_throttling_error(self, response: httpx.Response) -> bool:
        return response.status_code == httpx.codes.TOO_MANY_REQUESTS
