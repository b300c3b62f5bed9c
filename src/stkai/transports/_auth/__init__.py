"""`AuthProvider`, the interface of token sources; `StaticToken`, the simplest of them; how to get a token from one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

from ..._abandonable import AbandonableWork, Latch
from ..._errors import ConfigurationError, DeadlineExceededError
from ..._event_loops import anyio, run_soon, running_loop
from ..._secrets import MASK, HoldsSecret, Secret
from .._call import cannot_send
from .._layer_checks import signature_of
from .single_flight import Fetch, fetching, join, key_of, share_in_loop
from .single_flight import named_errors as named_errors


class AuthProvider(ABC):
    """Provides access tokens. A subclass needs only `get_access_token`, which must be thread-safe.

    A provider with only `get_access_token` is asked for every request: in the calling thread under a sync client,
    and in a background thread, one per fetch (about 150 microseconds), under an async client or with a deadline.
    Concurrent callers with the same context variables share one such fetch. To avoid the thread, return an available
    token from `cached_access_token`, or override `aget_access_token`. For a token that never changes, use
    `StaticToken`. To sign in another way than with a bearer token, override `get_auth_headers`.

    Attributes:
        token_is_for_all: whether every caller gets the same token, so that all share one fetch, run in a background
            thread even under a sync client. False by default: a provider may get the token of a user that it finds in
            a `ContextVar`.
    """

    token_is_for_all: bool = False

    @abstractmethod
    def get_access_token(self) -> str:
        """A valid access token, without "Bearer"; may take as long as a network call.

        Raises:
            AuthenticationError: there is no token.
        """

    def get_auth_headers(self) -> dict[str, str]:
        """The headers that sign a request, with the token by default. An override replaces calls of `get_access_token`.

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
    """Provides a token that you already have, such as an API key. It is never renewed: the caller gets a 401.

    Args:
        value: the token, without "Bearer"; never shown.

    Raises:
        ConfigurationError: the value cannot be sent in a header.
    """

    def __init__(self, value: str) -> None:
        token = Secret(value)
        del value
        if not (token.is_text() and is_sendable(token.reveal())):
            raise ConfigurationError(
                "StaticToken takes the token as a string of visible ASCII characters, without spaces, line breaks"
                f' or "Bearer"{token.hint()}'
            )
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
    # A mock with `spec=AuthProvider` is an instance, but its class lacks the method.
    return getattr(type(provider), "get_auth_headers", None) is not AuthProvider.get_auth_headers


Signature = str | Mapping[str, str]
"""An access token, or the headers that sign a request."""


def get_token(provider: AuthProvider, seconds: float, closing: Latch | None = None) -> Signature:
    """Get a token, or headers, from the provider, for a thread that can wait this many seconds.

    Raises a DeadlineExceededError if it takes longer, and a RuntimeError once `closing` is set; the fetch continues for
    later callers. A provider called in the caller's own thread cannot be timed out.
    """
    if seconds <= 0:
        raise too_late()
    with fetching(provider):
        if seconds == math.inf and not provider.token_is_for_all:
            with named_errors(provider):
                return _getter_of(provider)()
        fetch = join(_getter_of(provider))
        for wait in _waits(provider, seconds):
            if _wait_for(fetch, wait, closing or Latch()):
                return cast("Signature", fetch.result())
            spare = _old_signature(provider)
            if spare is not None:
                return spare
    raise too_late()


def _wait_for(fetch: Fetch, seconds: float, closing: Latch) -> bool:
    either = Latch()
    with fetch.ending_also(either), closing.ending_also(either):
        either.wait(seconds)
    if closing.is_done and not fetch.is_done:
        raise cannot_send()
    return fetch.is_done


async def aget_token(provider: AuthProvider, seconds: float, closing: Latch | None = None) -> Signature:
    """Like `get_token`, for a task; the tasks of one event loop share one fetch."""
    if seconds <= 0:
        raise too_late()
    closing = closing or Latch()
    with fetching(provider):
        for wait in _waits(provider, seconds):
            with anyio.move_on_after(wait) as scope:
                leaving = AbandonableWork(partial(run_soon, running_loop(), scope.cancel))
                with closing.ending_also(leaving):
                    key, work = key_of(provider.aget_access_token), partial(_aget_signature, provider)
                    return cast("Signature", await share_in_loop(key, work))
            if closing.is_done:
                raise cannot_send()
            spare = _old_signature(provider)
            if spare is not None:
                return spare
    raise too_late()


def _getter_of(provider: AuthProvider) -> Callable[[], Signature]:
    return provider.get_auth_headers if has_own_headers(provider) else provider.get_access_token


async def _aget_signature(provider: AuthProvider) -> Signature:
    with named_errors(provider):
        if not has_own_headers(provider):
            return await provider.aget_access_token()
        fetch = join(provider.get_auth_headers)
        await fetch.await_()
        return cast("Signature", fetch.result())


def _waits(provider: AuthProvider, seconds: float) -> tuple[float, ...]:
    """Seconds to wait for a fetch: all at once, or in two halves if there is still an old token to send with."""
    return (seconds,) if seconds == math.inf or _old_token(provider) is None else (seconds / 2, seconds / 2)


def _old_token(provider: AuthProvider) -> str | None:
    """A token that is still valid although it is time to renew it, or None."""
    try:
        signature_of(provider.cached_access_token).bind(renewing=True)
    except (TypeError, ValueError):  # Some providers override the method without its argument.
        return None
    with named_errors(provider):
        return provider.cached_access_token(renewing=True)


def _old_signature(provider: AuthProvider) -> Signature | None:
    """The old token, or headers with it. Call this only during a renewal: asking for headers would start one here."""
    token = _old_token(provider)
    if token is None or not has_own_headers(provider):
        return token
    with named_errors(provider):
        return provider.get_auth_headers()


def too_late() -> DeadlineExceededError:
    """The error to raise when the deadline passes before there is a token."""
    return DeadlineExceededError("the call's deadline passed while it waited for an access token")
