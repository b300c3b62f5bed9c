"""`BearerAuth`: which origins may see a token, and how a request is signed with it.

It signs a copy of the request: the token appears neither in `response.request` nor in an error's request, and no
repr of the objects here shows it.
"""

import itertools
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from typing import Final

import httpx

from ..._checks import check_flag, is_async, safe_repr
from ..._errors import AuthenticationError, ConfigurationError, InvalidArgumentError
from ..._headers import Fields, copy_request, with_fields
from ..._secrets import HoldsSecret, Secret, reveal
from ..._urls import is_private, origin_of, parse_origin, show_origin
from .._call import Attempt
from .._redirect_chain import CHAIN, is_first_origin
from . import AuthProvider, has_own_headers, is_sendable, named_errors

_EXPOSED: Final = (
    "the token would travel unencrypted to {}: use https://, or allow it with BearerAuth(provider, allow_http=True)"
    " or STKAI_AUTH_ALLOW_HTTP=true"
)

_MAX_TOKENS: Final = 100
"""The number of tokens to keep: a provider may have several at once, such as one for each tenant."""

_SYNC_METHODS: Final = {
    "get_access_token": "rename the async one to aget_access_token",
    "get_auth_headers": "get its token in get_access_token or aget_access_token",
}


class ExposedTokenError(AuthenticationError):
    """The token would be sent unencrypted, so nothing was sent. Requests to other origins may succeed."""


class Token(HoldsSecret):
    """An access token, with the headers that carry it, encoded once and shared by thousands of waiting requests."""

    __slots__ = ("_auth", "_claims", "fields", "value")

    def __init__(self, given: str | Mapping[str, str], auth: "BearerAuth") -> None:
        self._auth = auth
        if isinstance(given, str):
            self.value = given
            given = {"Authorization": f"Bearer {given}" if is_sendable(given) else "\n"}
        else:
            self.value = "\n".join(map(str, given.values())).removeprefix("Bearer ")
        self.fields: Fields | None = None  # The headers; None if they cannot be sent.
        with suppress(InvalidArgumentError):
            self.fields = Fields.of(given)
        self._claims = itertools.count()

    def claim_event(self) -> bool:
        """Whether to report it as a new token: True the first time this is called."""
        return next(self._claims) == 0

    def __call__(self) -> bool:
        """Whether it is still the token to sign with; called as `Attempt.is_signed`."""
        return self._auth.cached() is self

    def __repr__(self) -> str:
        return "<access token>"


class BearerAuth(HoldsSecret):
    """A provider of tokens, and the origins that may see them.

    Requests to other origins are not signed, and keep their own `Authorization` header; requests to these origins have
    it replaced. A token is sent over http:// only to this machine (localhost, 127.0.0.0/8, ::1), unless `allow_http`.

    Args:
        provider: where tokens come from.
        origins: one or several, such as `"https://api.example.com"`. None: each call's token is sent to the origin
            of its first hop and nowhere else. (Your own transport around the stack must then keep the request's
            `extensions`, which mark the first hop.)
        allow_http: whether tokens may travel unencrypted to other machines.

    Raises:
        ConfigurationError: the provider is not an AuthProvider, or an origin is not `scheme://host[:port]` or not
            encrypted.
    """

    def __init__(
        self, provider: AuthProvider, origins: Iterable[str] | str | None = None, *, allow_http: bool = False
    ) -> None:
        if not isinstance(provider, AuthProvider):
            # Do not show its repr: it may be the token itself.
            kind = f"a value of type {type(reveal(provider)).__name__}"
            if isinstance(provider, type):
                kind = f"the class {provider.__name__}"
            provider = Secret(provider)  # Tracebacks show variables.
            raise ConfigurationError(
                "the provider must be an AuthProvider, such as ClientCredentialsAuthProvider(...) or"
                f' StaticToken(token), not {kind}; auth= of a stack may also be a BearerAuth, "auto" or None'
            )
        for name, advice in _SYNC_METHODS.items():
            if is_async(getattr(provider, name, None)):
                method = f"{type(provider).__name__}.{name}"
                raise ConfigurationError(
                    f"{method} must be a plain method, since it is called without await: {advice}"
                )
        check_flag("allow_http", allow_http)
        self.provider = provider
        self._has_own_headers = has_own_headers(provider)
        self.allow_http = allow_http
        if isinstance(origins, str) or not isinstance(origins, Iterable | None):
            origins = (origins,)
        urls = None if origins is None else [parse_origin(name) for name in origins]
        self.origins = None if urls is None else frozenset(origin_of(url) for url in urls)
        exposed = [show_origin(url) for url in urls or () if not (allow_http or is_private(origin_of(url)))]
        if exposed:
            raise ConfigurationError(_EXPOSED.format(", ".join(exposed)))
        self._tokens: dict[Hashable, Token] = {}

    def may_sign(self, url: httpx.URL, attempt: Attempt) -> bool:
        """Whether the token may be sent to `url`: to one of the origins or, without any, that of the call's first hop.

        Raises an AuthenticationError if it would be, but the connection is not encrypted.
        """
        if self.origins is not None:
            return origin_of(url) in self.origins
        first = attempt.request
        if (url is not first.url or CHAIN in first.extensions) and not is_first_origin(url, first):
            return False
        if url.scheme != "https":
            self.require_private(url)
        return True

    def require_private(self, url: httpx.URL) -> None:
        """Raise an AuthenticationError for a URL to which the token would be sent unencrypted."""
        if not (self.allow_http or is_private(origin_of(url))):
            raise ExposedTokenError(_EXPOSED.format(show_origin(url)))

    def token(self, given: str | Mapping[str, str]) -> Token:
        """Encode a token, or the headers that carry it, as they are sent; equal tokens give the same object."""
        key: Hashable = given
        if not isinstance(given, str):  # Providers are user code.
            given = given if isinstance(given, Mapping) else ""
            key = tuple((name, str(value)) for name, value in given.items()) if given else ()
        token = self._tokens.get(key)
        if token is None:
            token = self._tokens.setdefault(key, Token(given, self))
            for old in list(self._tokens)[:-_MAX_TOKENS]:
                self._tokens.pop(old, None)
        return token

    def cached(self) -> Token | None:
        """The token that is available without waiting, or None; raises a provider's error as an AuthenticationError."""
        try:
            token = self._tokens.get(self.provider.cached_access_token())
        except Exception:
            with named_errors(self.provider):
                raise
        if token is not None:
            return token
        with named_errors(self.provider):
            cached = Secret(self.provider.cached_access_token())  # Tracebacks show variables.
            if cached.reveal() is None:
                return None
            return self.token(self.provider.get_auth_headers() if self._has_own_headers else cached.reveal())

    def forget(self, refused: Token) -> None:
        """Notify the provider that a server has refused the token; raises its error as an AuthenticationError."""
        provider = self.provider
        with named_errors(provider):
            if self._has_own_headers:  # These contain the token, perhaps beside other values.
                cached = Secret(provider.cached_access_token())
                if cached.is_text() and cached.reveal() in refused.value:
                    provider.forget(cached.reveal())
                    return
            provider.forget(refused.value)

    def sign(self, request: httpx.Request, token: Token) -> httpx.Request:
        """A copy of the request with the token in place of its `Authorization`.

        Raises an AuthenticationError if the provider returned something that cannot be a header value.
        """
        if token.fields is None:
            raise AuthenticationError(
                f"{type(self.provider).__name__} returned a token that cannot be sent: it must be visible ASCII without"
                ' spaces or line breaks, and without "Bearer"'
            )
        return copy_request(request, with_fields(request.headers, token.fields), None)

    @safe_repr
    def __repr__(self) -> str:
        return f"BearerAuth({type(self.provider).__name__})"
