"""Who may see a token, and how a request is signed with it: `BearerAuth`.

A copy of the request is signed: the token appears neither in `response.request` nor in an error's request, and the
objects that hold it here do not print it.
"""

import itertools
from collections.abc import Iterable
from inspect import iscoroutinefunction
from typing import Final

import httpx

from ..._errors import AuthenticationError, ConfigurationError
from ..._urls import Origin, is_private, origin_of, parse_origin, show_origin
from .._call import Attempt, copy_request
from .provider import AuthProvider, is_sendable

_EXPOSED: Final = (
    "the token would travel unencrypted to {}: use https://, or allow it with BearerAuth(provider, allow_http=True)"
    " or STKAI_AUTH_ALLOW_HTTP=true"
)


class ExposedTokenError(AuthenticationError):
    """The token would travel unencrypted; nothing was sent. Requests to other origins may succeed."""


class _Encoded(str):
    """A header value that is encoded once: thousands of waiting requests share the bytes."""

    __slots__ = ("_bytes",)

    def __init__(self, _: str) -> None:
        self._bytes = super().encode("ascii")

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """The bytes: the value is ASCII, which is the same in every encoding of headers."""
        return self._bytes


class Token:
    """An access token that does not print itself: traceback formatters show variables."""

    __slots__ = ("_claims", "header", "value")

    def __init__(self, value: str) -> None:
        self.value = value
        self.header = _Encoded(f"Bearer {value}") if is_sendable(value) else None
        self._claims = itertools.count()

    def is_news(self) -> bool:
        """True the first time it is asked."""
        return next(self._claims) == 0

    def __repr__(self) -> str:
        return "<access token>"


class BearerAuth:
    """A provider of tokens, and the origins that may see them.

    Requests to other origins pass unsigned and keep their own `Authorization` header. Requests to these origins have
    theirs replaced. A token goes over http:// only to this machine (localhost, 127.0.0.0/8, ::1), unless `allow_http`.

    Args:
        provider: where tokens come from.
        origins: one or several, such as `"https://api.example.com"`. None: each call's token goes to the origin of
            its first hop and nowhere else. (Your own transport around the stack must then keep the request's
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
            # Not its repr: it may be the token itself.
            kind = provider.__name__ if isinstance(provider, type) else f"a {type(provider).__name__}"
            msg = (
                f"auth must be an AuthProvider, such as ClientCredentialsAuthProvider(...) or StaticToken(token), a"
                f' BearerAuth, "auto" or None, not {kind}'
            )
            raise ConfigurationError(msg)
        if iscoroutinefunction(provider.get_access_token):
            msg = (
                f"{type(provider).__name__}.get_access_token must be a plain method, since nobody awaits it: rename the"
                " async one to aget_access_token"
            )
            raise ConfigurationError(msg)
        self.provider = provider
        self.allow_http = allow_http
        names = (origins,) if isinstance(origins, str) else origins
        urls = None if names is None else [parse_origin(name) for name in names]
        self.origins = None if urls is None else frozenset(origin_of(url) for url in urls)
        exposed = [show_origin(url) for url in urls or () if not self._is_safe(origin_of(url))]
        if exposed:
            raise ConfigurationError(_EXPOSED.format(", ".join(exposed)))
        self._tokens: dict[str, Token] = {}

    def may_sign(self, url: httpx.URL, attempt: Attempt) -> bool:
        """Whether the token may go to `url`: one of the origins, or, without any, the origin of the call's first hop.

        Raises:
            AuthenticationError: the token should go there, but the connection is not encrypted.
        """
        if self.origins is not None:
            return origin_of(url) in self.origins
        if not attempt.call.chain().is_home(url):
            return False
        self.require_private(url)
        return True

    def require_private(self, url: httpx.URL) -> None:
        """Refuse a URL to which the token would travel unencrypted, so that others could read it.

        Raises:
            AuthenticationError: the connection is not encrypted.
        """
        if url.scheme != "https" and not self._is_safe(origin_of(url)):
            raise ExposedTokenError(_EXPOSED.format(show_origin(url)))

    def _is_safe(self, origin: Origin) -> bool:
        return is_private(origin) or self.allow_http

    def token(self, value: str) -> Token:
        """The token in the form in which it is sent; the same object for the same token."""
        value = value if isinstance(value, str) else ""  # Providers are user code.
        token = self._tokens.get(value)
        if token is None:
            token = self._tokens.setdefault(value, Token(value))
            for old in list(self._tokens)[:-2]:
                self._tokens.pop(old, None)
        return token

    def sign(self, request: httpx.Request, token: Token) -> httpx.Request:
        """A copy of the request with the token in place of its `Authorization`.

        Raises:
            AuthenticationError: the provider returned something that cannot be a header value.
        """
        if token.header is None:
            msg = (
                f"{type(self.provider).__name__} returned a token that cannot be sent: it must be visible ASCII without"
                ' spaces or line breaks, and without "Bearer"'
            )
            raise AuthenticationError(msg)
        headers = request.headers.copy()
        headers["Authorization"] = token.header
        return copy_request(request, headers=headers)

    def __repr__(self) -> str:
        return f"BearerAuth({type(self.provider).__name__})"
