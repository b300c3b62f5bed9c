"""What the auth layer needs from a token source: `AuthProvider`, and `StaticToken`, the simplest one."""

from abc import ABC, abstractmethod
from typing import cast

from ..._errors import ConfigurationError
from ..._secrets import MASK, HoldsSecret, Secret
from .fetch import join


class AuthProvider(ABC):
    """Provides access tokens. A subclass needs only `get_access_token`, which must be thread-safe.

    A provider with only `get_access_token` is asked for every request: in the calling thread under a sync client,
    and in a background thread, one per fetch (about 150 microseconds), under an async client or with a deadline.
    Concurrent callers with the same context variables share one such fetch. To avoid the thread, return an available
    token from `cached_access_token`, or override `aget_access_token`. For a token that never changes, use
    `StaticToken`. To sign in another way than with a bearer token, override `get_auth_headers`.

    Attributes:
        token_is_for_all: whether every caller gets the same token, so that all share one fetch, whatever their context
            variables are. False by default: a provider may look up in a `ContextVar` for whom it gets a token.
    """

    token_is_for_all: bool = False

    @abstractmethod
    def get_access_token(self) -> str:
        """A valid access token, without "Bearer"; may take as long as a network call.

        Raises:
            AuthenticationError: there is no token.
        """

    def get_auth_headers(self) -> dict[str, str]:
        """The headers that sign a request: by default `Authorization` with the token. The transports use an override.

        Raises:
            AuthenticationError: there is no token.
        """
        return {"Authorization": f"Bearer {self.get_access_token()}"}

    def cached_access_token(self, *, renewing: bool = False) -> str | None:
        """A valid token that is available without waiting, or None.

        Args:
            renewing: a new token is already being fetched, so one that is about to expire will do.
        """
        return None

    def forget(self, token: str) -> None:
        """Drop the token if it is still in use: a server has refused it. By default, does nothing."""
        return

    async def aget_access_token(self) -> str:
        """Like `get_access_token`, without blocking the event loop. Override it if the provider itself is async.

        Raises:
            AuthenticationError: there is no token.
        """
        token = self.cached_access_token()
        if token is not None:
            return token
        fetch = join(self.get_access_token)
        await fetch.await_()
        return cast("str", fetch.result())


class StaticToken(HoldsSecret, AuthProvider):
    """Provides a token that you already have, such as an API key. It is never renewed: a 401 goes to the caller.

    Args:
        value: the token, without "Bearer"; never shown.

    Raises:
        ConfigurationError: the value cannot be sent in a header.
    """

    def __init__(self, value: str) -> None:
        token = Secret(value)
        del value
        if not (token.is_text() and is_sendable(token.reveal())):
            msg = (
                "StaticToken takes the token as a string of visible ASCII characters, without spaces, line breaks"
                ' or "Bearer"'
            )
            raise ConfigurationError(msg)
        self._token = token

    def get_access_token(self) -> str:
        token: str = self._token.reveal()
        return token

    def cached_access_token(self, *, renewing: bool = False) -> str | None:
        return self.get_access_token()

    def __repr__(self) -> str:
        return f"StaticToken({MASK})"


def is_sendable(token: str) -> bool:
    """Whether a token can be a header value: visible ASCII, no spaces (RFC 6750, section 2.1, is stricter)."""
    return bool(token) and token.isascii() and token.isprintable() and " " not in token


def has_own_headers(provider: AuthProvider) -> bool:
    """Whether a provider signs in another way than with a bearer token."""
    return type(provider).get_auth_headers is not AuthProvider.get_auth_headers
