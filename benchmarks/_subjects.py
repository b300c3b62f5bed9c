"""The stacks to compare, each on a given wire: stkai's own, and those of other libraries.

All limiters are set to a rate that is never reached: the benchmarks measure the work, not the wait.
"""

from collections.abc import Callable
from typing import Any

import httpx

import stkai
from benchmarks import _floor
from benchmarks._server import BODY, HEADERS

URL = "https://genai-code-buddy-api.stackspot.com/v1/quick-commands/create-execution/explain-this-code"
DATA = {"input_data": "Explain what this function does, and how it could be made simpler. " * 6}
PEERS = (
    "httpx",
    "httpx2",
    "httpx-retries",
    "httpx-tenacity",
    "httpx-limiter",
    "pyrate-limiter",
    "aiolimiter",
)
FAST = 1e9
"""Requests per second: a limit that is never reached."""

_TOKEN = {"access_token": _floor.TOKEN, "expires_in": 86_400}

Wire = httpx.BaseTransport
AsyncWire = httpx.AsyncBaseTransport


def answer(library: Any = httpx) -> Any:
    """A wire of `library`, sync and async, that answers at once as a server would."""

    def respond(request: Any) -> Any:
        extensions = {"http_version": b"HTTP/1.1", "reason_phrase": b"OK"}
        return library.Response(200, headers=HEADERS, stream=library.ByteStream(BODY), extensions=extensions)

    return library.MockTransport(respond)


def provider() -> stkai.AuthProvider:
    """The usual token provider; its endpoint answers at once."""
    wire = httpx.MockTransport(lambda _: httpx.Response(200, json=_TOKEN))
    return stkai.ClientCredentialsAuthProvider("id", "secret", "https://id.example.com/token", transport=wire)


def limiter() -> stkai.AimdLimiter:
    return stkai.AimdLimiter(FAST, 1.0)


def standard(wire: Wire | None) -> Wire:
    """The standard stack, retry > auth > adaptive, on a wire; None for stkai's own."""
    return stkai.build_transport(
        auth=stkai.BearerAuth(provider(), allow_http=True),
        rate_limit=limiter(),
        retry=stkai.RetryPolicy(),
        transport=wire,
    )


def async_standard(wire: AsyncWire | None) -> AsyncWire:
    return stkai.build_async_transport(
        auth=stkai.BearerAuth(provider(), allow_http=True),
        rate_limit=limiter(),
        retry=stkai.RetryPolicy(),
        transport=wire,
    )


def httpx_retries(wire: Any) -> Any:
    from httpx_retries import RetryTransport

    return RetryTransport(transport=wire)


def httpx_tenacity(wire: Any) -> Any:
    from httpx_tenacity.tenacious_transport import TenaciousTransport

    return TenaciousTransport.create(transport=wire)


def async_httpx_tenacity(wire: Any) -> Any:
    from httpx_tenacity.async_tenacious_transport import AsyncTenaciousTransport

    return AsyncTenaciousTransport.create(transport=wire)


class _PyrateTransport(httpx.BaseTransport):
    """pyrate-limiter has no transport for httpx; this is what its users write themselves."""

    def __init__(self, inner: Wire) -> None:
        from pyrate_limiter import Duration, Limiter, Rate

        self._inner = inner
        self._limiter = Limiter(Rate(1_000_000, Duration.SECOND))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._limiter.try_acquire("request")
        return self._inner.handle_request(request)


def pyrate(wire: Wire) -> Wire:
    retrying: Wire = httpx_retries(_PyrateTransport(wire))
    return retrying


def httpx_limiter(wire: AsyncWire) -> AsyncWire:
    from httpx_limiter import AsyncRateLimitedTransport, Rate
    from httpx_limiter.aiolimiter import AiolimiterAsyncLimiter

    limit = AiolimiterAsyncLimiter.create(Rate.create(1_000_000))
    retrying: AsyncWire = httpx_retries(AsyncRateLimitedTransport(limiter=limit, transport=wire))
    return retrying


def floor(wire: Wire) -> Wire:
    return _floor.stack(wire, FAST)


def async_floor(wire: AsyncWire) -> AsyncWire:
    return _floor.async_stack(wire, FAST)


MOUNTED: dict[str, tuple[Callable[[Wire], Wire], Callable[[AsyncWire], AsyncWire]]] = {
    "hand-written floor: retry, auth, bucket, AIMD": (floor, async_floor),
    "**stkai**: retry, auth, adaptive": (standard, async_standard),
    "httpx-retries alone": (httpx_retries, httpx_retries),
    "pyrate-limiter (async: httpx-limiter) with httpx-retries": (pyrate, httpx_limiter),
    "httpx-tenacity alone": (httpx_tenacity, async_httpx_tenacity),
}
"""What is mounted in an httpx client, sync and async."""
