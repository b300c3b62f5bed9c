"""Signs requests with a bearer token, only for the origins that may see it, and renews a token that was refused.

The policy is `BearerAuth`: a provider of tokens and the origins that they are for. An httpx client follows redirects
above all layers, so that every hop passes through here: the token stays at home even where a server redirects
elsewhere. The request is signed on a copy: the token appears neither in `response.request` nor in an error's.
"""

import threading
from collections.abc import Iterable
from functools import partial
from typing import Final

import httpx

from .._auth import AuthProvider
from .._errors import AuthenticationError, ConfigurationError
from .._events import TokenRenewed
from ._base import AsyncLayerTransport, Call, Context, Layer, LayerTransport, can_resend, copy_request

_MARK: Final = "stkai.origin"
"""The extension that tells the next hop of a redirected call where it began."""

_PORTS = {b"http": 80, b"https": 443}

Origin = tuple[bytes, bytes, int | None]
"""Scheme, host and port (RFC 6454, section 4)."""


def origin_of(url: httpx.URL) -> Origin:
    """The origin of a URL; the host is in its IDNA form, so look-alikes differ."""
    scheme = url.raw_scheme
    return scheme, url.raw_host.lower(), url.port or _PORTS.get(scheme)


class BearerAuth:
    """A provider of tokens, and the origins that may see them.

    Args:
        provider: where tokens come from.
        origins: such as `"https://api.example.com"`; one or several. None: each call's token goes to the origin of
            its first hop and nowhere else.

    Raises:
        ConfigurationError: the provider has no `get_access_token`, or an origin is not `scheme://host[:port]`.
    """

    def __init__(self, provider: AuthProvider, origins: Iterable[str] | str | None = None) -> None:
        if isinstance(provider, type) or not callable(getattr(provider, "get_access_token", None)):
            msg = f"auth must be an AuthProvider (it has get_access_token()), not {provider!r}"
            raise ConfigurationError(msg)
        self.provider = provider
        names = (origins,) if isinstance(origins, str) else origins
        self.origins = None if names is None else frozenset(_parse_origin(name) for name in names)
        self._lock = threading.Lock()
        self._latest: str | None = None

    def may_sign(self, url: httpx.URL, call: Call) -> bool:
        """Whether the token may go to `url`; without origins, marks the call with that of its first hop."""
        origin = origin_of(url)
        if self.origins is not None:
            return origin in self.origins
        return bool(call.extensions.setdefault(_MARK, origin) == origin)

    def sign(self, request: httpx.Request, token: str) -> httpx.Request:
        """A copy of the request with the token in place of any `Authorization` that it had."""
        kept = [(name, value) for name, value in request.headers.raw if name.lower() != b"authorization"]
        kept.append((b"Authorization", b"Bearer " + token.encode("ascii")))
        return copy_request(request, headers=httpx.Headers(kept))

    def is_news(self, token: str) -> bool:
        """Whether the token is another than the last; the first of those who ask is told so."""
        with self._lock:
            news, self._latest = token != self._latest, token
            return news

    def is_refusal(self, response: httpx.Response) -> bool:
        """Whether the server refused the token (RFC 6750, section 3.1)."""
        return response.status_code == httpx.codes.UNAUTHORIZED

    def __repr__(self) -> str:
        return f"BearerAuth({self.provider!r})"


def _parse_origin(name: str) -> Origin:
    url = httpx.URL(name)
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.raw_path not in {b"", b"/"}:
        msg = (
            f"an origin is scheme://host or scheme://host:port, such as https://api.example.com, not {name!r}"
        )
        raise ConfigurationError(msg)
    return origin_of(url)


class AuthTransport(LayerTransport):
    """Sends with a valid token; after a 401 renews it and sends once more.

    Raises:
        AuthenticationError: no token could be had; nothing was sent.
    """

    name = "auth"

    def __init__(
        self,
        inner: httpx.BaseTransport,
        policy: BearerAuth | AuthProvider,
        *,
        context: Context | None = None,
    ) -> None:
        super().__init__(inner, context=context)
        self.policy = policy if isinstance(policy, BearerAuth) else BearerAuth(policy)

    def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        if not self.policy.may_sign(request.url, call):
            return self.forward(request, call)
        token = self._token(call)
        response = self.forward(self.policy.sign(request, token), call)
        if not self.policy.is_refusal(response):
            return response
        return self._renew(request, call, response, token)

    def _renew(
        self, request: httpx.Request, call: Call, response: httpx.Response, refused: str
    ) -> httpx.Response:
        self.policy.provider.forget(refused)
        if not can_resend(request):
            return response
        try:
            token = self._token(call, "the server refused the old one")
        except BaseException:
            response.close()
            raise
        if token == refused:
            return response
        response.close()
        call.record.attempts += 1
        return self.forward(self.policy.sign(request, token), call)

    def _token(self, call: Call, reason: str = "none was valid") -> str:
        token = self.policy.provider.cached_access_token()
        if token is not None:
            return token
        start = self.context.clock.monotonic()
        try:
            token = self.policy.provider.get_access_token()
        finally:
            seconds = self.context.clock.monotonic() - start
            call.record.authenticating += seconds
        if self.policy.is_news(token):
            self.context.emit(TokenRenewed(seconds=seconds, reason=reason))
        return token


class AsyncAuthTransport(AsyncLayerTransport):
    """Sends with a valid token; after a 401 renews it and sends once more.

    The tasks of one event loop share one renewal. A provider that is only sync runs in a worker thread.

    Raises:
        AuthenticationError: no token could be had; nothing was sent.
    """

    name = "auth"

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        policy: BearerAuth | AuthProvider,
        *,
        context: Context | None = None,
    ) -> None:
        super().__init__(inner, context=context)
        self.policy = policy if isinstance(policy, BearerAuth) else BearerAuth(policy)
        self._renewal: _Renewal | None = None

    async def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        if not self.policy.may_sign(request.url, call):
            return await self.forward(request, call)
        token = await self._token(call)
        response = await self.forward(self.policy.sign(request, token), call)
        if not self.policy.is_refusal(response):
            return response
        return await self._renew(request, call, response, token)

    async def _renew(
        self, request: httpx.Request, call: Call, response: httpx.Response, refused: str
    ) -> httpx.Response:
        self.policy.provider.forget(refused)
        if not can_resend(request):
            return response
        try:
            token = await self._token(call, "the server refused the old one")
        except BaseException:
            await response.aclose()
            raise
        if token == refused:
            return response
        await response.aclose()
        call.record.attempts += 1
        return await self.forward(self.policy.sign(request, token), call)

    async def _token(self, call: Call, reason: str = "none was valid") -> str:
        token = self.policy.provider.cached_access_token(renewing=self._renewal is not None)
        if token is not None:
            return token
        start = self.context.clock.monotonic()
        try:
            token = await self._shared_renewal()
        finally:
            seconds = self.context.clock.monotonic() - start
            call.record.authenticating += seconds
        if self.policy.is_news(token):
            self.context.emit(TokenRenewed(seconds=seconds, reason=reason))
        return token

    async def _shared_renewal(self) -> str:
        """Renew, or wait for the task that does. If that one is cancelled, the next takes over."""
        while (renewal := self._renewal) is not None:
            await renewal.done.wait()
            if renewal.error is not None:
                raise AuthenticationError(renewal.error.message, renewal.error.cause) from renewal.error
            if renewal.token is not None:
                return renewal.token
        renewal = self._renewal = _Renewal()
        try:
            renewal.token = await self.policy.provider.aget_access_token()
        except AuthenticationError as error:
            renewal.error = error
            raise
        finally:
            self._renewal = None
            renewal.done.set()
        return renewal.token


class _Renewal:
    """One renewal in progress, its outcome, and the event on which the others wait."""

    def __init__(self) -> None:
        import anyio

        self.done = anyio.Event()
        self.token: str | None = None
        self.error: AuthenticationError | None = None


def auth(policy: BearerAuth | AuthProvider) -> Layer:
    """The layer `auth`, for a `StackBuilder`."""
    bearer = policy if isinstance(policy, BearerAuth) else BearerAuth(policy)
    return Layer(
        "auth", partial(AuthTransport, policy=bearer), partial(AsyncAuthTransport, policy=bearer), bearer
    )
