"""The same four jobs, hand-written with as little code as possible: no library can be expected to be cheaper.

No events, no records, no deadlines, no redirects, no re-signing, no validation: for comparison, not for use.
"""

import asyncio
import threading
import time

import httpx

TOKEN = "t" * 800
_HEADER = f"Bearer {TOKEN}"
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_ATTEMPTS = 4


class Gcra:
    """A constant rate with a burst, as one number: when the next request is due. One sleep per permit."""

    def __init__(self, rate: float, burst: float = 1.0) -> None:
        self.interval = 1 / rate
        self.allowance = (burst - 1) / rate
        self.lock = threading.Lock()
        self.due = 0.0

    def reserve(self) -> float:
        """Take a permit; returns the seconds until it may be used."""
        now = time.monotonic()
        with self.lock:
            start = max(self.due, now - self.allowance)
            self.due = start + self.interval
            return start - now

    def acquire(self) -> None:
        wait = self.reserve()
        if wait > 0:
            time.sleep(wait)

    async def aacquire(self) -> None:
        wait = self.reserve()
        if wait > 0:
            await asyncio.sleep(wait)


class Aimd(Gcra):
    """Additive increase per success, multiplicative decrease per refusal."""

    def __init__(self, rate: float, burst: float = 1.0) -> None:
        super().__init__(rate, burst)
        self.top = self.rate = rate

    def learn(self, status: int) -> None:
        with self.lock:
            if status == 429:
                self.rate *= 0.7
            elif self.rate < self.top:
                self.rate = min(self.top, self.rate + 0.05 * self.top)
            self.interval = 1 / self.rate


class _Layer(httpx.BaseTransport):
    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner = inner

    def close(self) -> None:
        self.inner.close()


class Retry(_Layer):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for attempt in range(1, _ATTEMPTS):
            try:
                response = self.inner.handle_request(request)
            except httpx.TransportError:
                pass
            else:
                if response.status_code not in _AGAIN:
                    return response
                response.close()
            time.sleep(0.25 * 2**attempt)
        return self.inner.handle_request(request)


class Auth(_Layer):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["Authorization"] = _HEADER
        return self.inner.handle_request(request)


class Limit(_Layer):
    def __init__(self, inner: httpx.BaseTransport, bucket: Gcra) -> None:
        super().__init__(inner)
        self.bucket = bucket

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.bucket.acquire()
        return self.inner.handle_request(request)


class Adapt(_Layer):
    def __init__(self, inner: httpx.BaseTransport, limiter: Aimd) -> None:
        super().__init__(inner)
        self.limiter = limiter

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.limiter.acquire()
        response = self.inner.handle_request(request)
        self.limiter.learn(response.status_code)
        return response


class _AsyncLayer(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner

    async def aclose(self) -> None:
        await self.inner.aclose()


class AsyncRetry(_AsyncLayer):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        for attempt in range(1, _ATTEMPTS):
            try:
                response = await self.inner.handle_async_request(request)
            except httpx.TransportError:
                pass
            else:
                if response.status_code not in _AGAIN:
                    return response
                await response.aclose()
            await asyncio.sleep(0.25 * 2**attempt)
        return await self.inner.handle_async_request(request)


class AsyncAuth(_AsyncLayer):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["Authorization"] = _HEADER
        return await self.inner.handle_async_request(request)


class AsyncLimit(_AsyncLayer):
    def __init__(self, inner: httpx.AsyncBaseTransport, bucket: Gcra) -> None:
        super().__init__(inner)
        self.bucket = bucket

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self.bucket.aacquire()
        return await self.inner.handle_async_request(request)


class AsyncAdapt(_AsyncLayer):
    def __init__(self, inner: httpx.AsyncBaseTransport, limiter: Aimd) -> None:
        super().__init__(inner)
        self.limiter = limiter

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self.limiter.aacquire()
        response = await self.inner.handle_async_request(request)
        self.limiter.learn(response.status_code)
        return response


def stack(wire: httpx.BaseTransport, rate: float) -> httpx.BaseTransport:
    return Retry(Auth(Limit(Adapt(wire, Aimd(rate)), Gcra(rate))))


def async_stack(wire: httpx.AsyncBaseTransport, rate: float) -> httpx.AsyncBaseTransport:
    return AsyncRetry(AsyncAuth(AsyncLimit(AsyncAdapt(wire, Aimd(rate)), Gcra(rate))))
