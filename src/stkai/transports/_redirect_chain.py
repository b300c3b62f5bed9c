"""The requests of one call of an httpx client: the first, its redirects, and those that httpx's own auth sends again.

Each of them passes through the whole stack, as a `Call` of its own; they share one deadline and one allowance for
waiting. Since most calls are a single request, a chain is created only when an answer allows another request.
"""

import weakref
from typing import Final

import httpx

from .._urls import origin_of

CHAIN: Final = "stkai.chain"
"""The extension that links later requests to the start and URL of the first; httpx copies the extensions."""

_AUTHORIZATION: Final = "authorization"

UNAUTHORIZED: Final = 401
"""Also the status of a refused token; RFC 6750, section 3.1."""

CONTINUED: Final = frozenset({301, 302, 303, 307, 308, UNAUTHORIZED})
"""The statuses after which an httpx client may send another request."""


class Chain:
    """Data that the requests of a call share; each carries it in its extensions once another may follow it."""

    __slots__ = ("_is_challenged", "_is_redirected", "_request", "_signed", "queued", "started", "url")

    def __init__(self, request: httpx.Request, started: float) -> None:
        self.started, self.url = started, first_url(request)  # Of the first request; in seconds of the clock.
        self.queued = 0.0  # Seconds that the earlier requests spent waiting for permits.
        self._request = weakref.ref(request)
        self._is_redirected = self._is_challenged = False
        self._signed: str | None = None

    def includes(self, request: httpx.Request) -> bool:
        """Whether the request continues the chain; False for a new call that copies the extensions of an old one.

        A redirect is a new request object. httpx's auth sends the same object again, with other credentials.
        """
        if self._request() is not request:
            return self._is_redirected
        return self._is_challenged and request.headers.get(_AUTHORIZATION) != self._signed

    def ended(self, response: httpx.Response, queued: float) -> None:
        """Record the answer to the latest request, which determines whether another may follow."""
        self.queued += queued
        self._is_redirected = response.has_redirect_location
        self._is_challenged = _is_challenge(response)
        if self._is_challenged:
            request = self._request()
            self._signed = None if request is None else request.headers.get(_AUTHORIZATION)


def _is_challenge(response: httpx.Response) -> bool:
    """Whether httpx's auth sends the request again, with credentials."""
    return response.status_code == UNAUTHORIZED and "www-authenticate" in response.headers


def may_continue(response: httpx.Response) -> bool:
    """Whether an httpx client may send another request after this response, whose body it reads first."""
    is_for_caller = getattr(response, "is_for_caller", False)
    return not is_for_caller and (response.has_redirect_location or _is_challenge(response))


def chain_before(request: httpx.Request) -> Chain | None:
    """The chain that the request continues; None if it is the first of its call."""
    chain = request.extensions.get(CHAIN)
    return chain if isinstance(chain, Chain) and chain.includes(request) else None


def first_url(request: httpx.Request) -> httpx.URL:
    """The URL of the call's first request, even if `request` is sent again, for example by a retrying transport."""
    chain = request.extensions.get(CHAIN)
    return chain.url if isinstance(chain, Chain) else request.url


def is_first_origin(url: httpx.URL, request: httpx.Request) -> bool:
    """Whether `url` has the same origin as the first request of the call that `request` belongs to."""
    first = first_url(request)
    return url is first or origin_of(url) == origin_of(first)
