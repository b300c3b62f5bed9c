"""Signs requests with a bearer token, only for the origins that may see it, and renews a token that was refused.

The policy is `BearerAuth`: a provider of tokens and the origins that they are for. An httpx client follows redirects
above all layers, so that every hop passes through here: the token stays at home even where a server redirects
elsewhere. The request is signed on a copy: the token appears neither in `response.request` nor in an error's, and what
holds it here prints as something else.
"""

import itertools
from collections.abc import Iterable
from functools import partial
from typing import Final

import httpx

from ..._credentials.client_credentials import AuthProvider, is_sendable
from ..._errors import AuthenticationError, ConfigurationError, hide_frames
from ..._families import alike
from ..._urls import Origin, is_private, origin_of, parse_origin, show_origin
from .._base import CALL, AsyncLayerTransport, Call, Context, Layer, LayerTransport, can_resend, copy_request
from .single_flight import TaskRenewals, get_token

_MARK: Final = "stkai.origin"
"""The extension that tells the next hop of a redirected call where it began."""

_UNAUTHORIZED: Final = 401

_EXPOSED: Final = (
    "the token would travel unencrypted to {}: use https://, or allow it with BearerAuth(provider, allow_http=True)"
    " or STKAI_AUTH_ALLOW_HTTP=true"
)

_NONE: Final = "none was valid"
_REFUSED: Final = "the server refused the old one"


class _Encoded(str):
    """A header's value that is encoded once: thousands of requests that wait with it share the bytes."""

    __slots__ = ("_bytes",)

    def __init__(self, _: str) -> None:
        self._bytes = super().encode("ascii")

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """The bytes: it is ASCII, which is the same in every encoding of headers."""
        return self._bytes


class Token:
    """An access token, which prints as none: formatters of tracebacks show variables."""

    __slots__ = ("_claims", "header", "value")

    def __init__(self, value: str) -> None:
        self.value = value
        self.header = _Encoded(f"Bearer {value}") if is_sendable(value) else None
        self._claims = itertools.count()

    def is_news(self) -> bool:
        """True for the first who asks."""
        return next(self._claims) == 0

    def __repr__(self) -> str:
        return "<access token>"


class BearerAuth:
    """A provider of tokens, and the origins that may see them.

    Requests to other origins pass unsigned, with any `Authorization` header of their own. Requests to these have
    theirs replaced. A token goes over http:// only to this machine (localhost, 127.0.0.0/8, ::1), unless `allow_http`.

    Args:
        provider: where tokens come from.
        origins: such as `"https://api.example.com"`; one or several. None: each call's token goes to the origin of
            its first hop and nowhere else. (A transport of your own around the stack must then keep the request's
            `extensions`, in which the first hop is marked.)
        allow_http: lets tokens travel unencrypted to other machines.

    Raises:
        ConfigurationError: the provider is no AuthProvider, or an origin is not `scheme://host[:port]`, or is not
            encrypted.
    """

    def __init__(
        self, provider: AuthProvider, origins: Iterable[str] | str | None = None, *, allow_http: bool = False
    ) -> None:
        if not isinstance(provider, AuthProvider):
            # Not its repr: somebody may have passed the token itself.
            kind = provider.__name__ if isinstance(provider, type) else f"a {type(provider).__name__}"
            msg = f"auth must be an object of a subclass of stkai.AuthProvider, not {kind}"
            raise ConfigurationError(msg)
        self.provider = provider
        self.allow_http = allow_http
        names = (origins,) if isinstance(origins, str) else origins
        urls = None if names is None else [parse_origin(name) for name in names]
        self.origins = None if urls is None else frozenset(origin_of(url) for url in urls)
        exposed = [show_origin(url) for url in urls or () if not self._is_safe(origin_of(url))]
        if exposed:
            raise ConfigurationError(_EXPOSED.format(", ".join(exposed)))
        self.renewals = TaskRenewals()
        self._tokens: dict[str, Token] = {}

    def may_sign(self, url: httpx.URL, call: Call) -> bool:
        """Whether the token may go to `url`; without origins, marks the call with that of its first hop.

        Raises:
            AuthenticationError: it should, but the way is not encrypted.
        """
        origin = origin_of(url)
        if self.origins is not None:
            return origin in self.origins
        if call.extensions.setdefault(_MARK, origin) != origin:
            return False
        if origin[0] != "https" and not self._is_safe(origin):
            raise AuthenticationError(_EXPOSED.format(show_origin(url)))
        return True

    def _is_safe(self, origin: Origin) -> bool:
        return is_private(origin) or self.allow_http

    def token(self, value: str) -> Token:
        """The token in the form in which it is sent; the same object for the same token."""
        value = value if isinstance(value, str) else ""  # Anybody can write a provider.
        token = self._tokens.get(value)
        if token is None:
            token = self._tokens.setdefault(value, Token(value))
            for old in list(self._tokens)[:-2]:
                self._tokens.pop(old, None)
        return token

    def sign(self, request: httpx.Request, token: Token, call: Call) -> httpx.Request:
        """A copy of the request with the token in place of any `Authorization` that it had, and with its call.

        Raises:
            AuthenticationError: the provider returned what cannot stand in a header.
        """
        if token.header is None:
            msg = (
                f"{type(self.provider).__name__} returned a token that cannot be sent: it must be visible ASCII without"
                ' spaces or line breaks, and without "Bearer"'
            )
            raise AuthenticationError(msg)
        headers = request.headers.copy()
        headers["Authorization"] = token.header
        return copy_request(request, headers=headers, extensions={**request.extensions, CALL: call})

    def is_refusal(self, response: httpx.Response) -> bool:
        """Whether the server refused the token (RFC 6750, section 3.1)."""
        return response.status_code == _UNAUTHORIZED

    def __repr__(self) -> str:
        return f"BearerAuth({type(self.provider).__name__})"


class AuthTransport(LayerTransport):
    """Sends with a valid token; after a 401 renews it and sends once more.

    Raises:
        AuthenticationError: no token could be had, or it may not be sent.
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
        token = self._kept() or self._fetch(call, _NONE)
        response = self._send(request, call, token)
        if not self.policy.is_refusal(response):
            return response
        return self._renew(request, call, response, token)

    def _send(self, request: httpx.Request, call: Call, token: Token) -> httpx.Response:
        try:
            response = self.forward(self.policy.sign(request, token, call), call)
        except alike(httpx.RequestError) as error:
            hide_frames(error)
            raise
        response.request = request
        return response

    def _renew(
        self, request: httpx.Request, call: Call, response: httpx.Response, refused: Token
    ) -> httpx.Response:
        self.policy.provider.forget(refused.value)
        if not can_resend(request):
            return response
        try:
            token = self._kept() or self._fetch(call, _REFUSED)
        except BaseException:
            response.close()
            raise
        if token.value == refused.value:
            return response
        response.close()
        call.record.attempts += 1
        return self._send(request, call, token)

    def _kept(self) -> Token | None:
        cached = self.policy.provider.cached_access_token()
        return None if cached is None else self.policy.token(cached)

    def _fetch(self, call: Call, reason: str) -> Token:
        start = self.context.clock.monotonic()
        try:
            token = self.policy.token(get_token(self.policy.provider, call.time_left(start)))
        finally:
            seconds = self.context.clock.monotonic() - start
            call.record.authenticating += seconds
        if token.is_news():
            from ..._events import TokenRenewed

            self.context.emit(TokenRenewed(seconds=seconds, reason=reason))
        return token


class AsyncAuthTransport(AsyncLayerTransport):
    """Sends with a valid token; after a 401 renews it and sends once more.

    The tasks of one event loop share one renewal. A provider that is only sync runs in a worker thread.

    Raises:
        AuthenticationError: no token could be had, or it may not be sent.
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

    async def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        if not self.policy.may_sign(request.url, call):
            return await self.forward(request, call)
        token = self._kept() or await self._fetch(call, _NONE)
        response = await self._send(request, call, token)
        if not self.policy.is_refusal(response):
            return response
        return await self._renew(request, call, response, token)

    async def _send(self, request: httpx.Request, call: Call, token: Token) -> httpx.Response:
        try:
            response = await self.forward(self.policy.sign(request, token, call), call)
        except alike(httpx.RequestError) as error:
            hide_frames(error)
            raise
        response.request = request
        return response

    async def _renew(
        self, request: httpx.Request, call: Call, response: httpx.Response, refused: Token
    ) -> httpx.Response:
        self.policy.provider.forget(refused.value)
        if not can_resend(request):
            return response
        try:
            token = self._kept() or await self._fetch(call, _REFUSED)
        except BaseException:
            await response.aclose()
            raise
        if token.value == refused.value:
            return response
        await response.aclose()
        call.record.attempts += 1
        return await self._send(request, call, token)

    def _kept(self) -> Token | None:
        policy = self.policy
        cached = policy.provider.cached_access_token(renewing=bool(policy.renewals))
        return None if cached is None else policy.token(cached)

    async def _fetch(self, call: Call, reason: str) -> Token:
        policy, start = self.policy, self.context.clock.monotonic()
        try:
            token = policy.token(await policy.renewals.get_token(policy.provider, call.time_left(start)))
        finally:
            seconds = self.context.clock.monotonic() - start
            call.record.authenticating += seconds
        if token.is_news():
            from ..._events import TokenRenewed

            self.context.emit(TokenRenewed(seconds=seconds, reason=reason))
        return token


def auth(policy: BearerAuth | AuthProvider) -> Layer:
    """The layer `auth`, for a `StackBuilder`."""
    bearer = policy if isinstance(policy, BearerAuth) else BearerAuth(policy)
    return Layer(
        "auth", partial(AuthTransport, policy=bearer), partial(AsyncAuthTransport, policy=bearer), bearer
    )
