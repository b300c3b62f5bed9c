"""`AuthProvider`, the interface of token sources; `StaticToken`, the simplest of them; and how to fetch a token.

A fetch that several threads and tasks wait for runs once, in a background thread. The thread is a daemon, so that a
program can exit while a token endpoint hangs, and a forked child is not held up by its parent's fetch.
"""

import copy
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, cast

from ..._abandonable import AbandonableWork, NoThreadError, Worker, current_work
from ..._errors import AuthenticationError, ConfigurationError, describe
from ..._process import raise_interrupt
from ..._secrets import MASK, HoldsSecret, Secret
from .._options import ENTERED


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
                ' or "Bearer"'
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


class Fetch(AbandonableWork):
    """A fetch in a background thread: wait for it, then ask for its `result`."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(self._fetch, _outside_of_event_loops())
        self.key = key_of(work)
        self.starter: int | None = threading.get_ident()
        self._fetches = work

    def _fetch(self) -> Any:
        mine: list[Any] = [getattr(self._fetches, "__self__", None)]
        FETCHING.set((*FETCHING.get(), mine))
        try:
            with named_errors(getattr(self._fetches, "__self__", self._fetches)):
                return self._fetches()
        finally:
            mine.clear()
            if _running.get(self.key) is self:  # The next caller starts another fetch.
                _running.pop(self.key, None)

    def result(self) -> Any:
        """The result of the fetch. Raises a copy of the error for each caller, since its `request` is the caller's."""
        if isinstance(self._error, AuthenticationError):
            raise copy.copy(self._error) from self._error.cause
        if self._error is not None:
            raise self._error
        return self._results[0]


FETCHING: Final[ContextVar[tuple[list[AuthProvider], ...]]] = ContextVar("stkai.fetching", default=())
"""The fetches that this code is part of: each is a list with its provider, emptied when the fetch ends."""

_running: Final[dict[Hashable, Fetch]] = {}
"""The fetches in progress, by process and by work."""


def join(work: Callable[[], Any]) -> Fetch:
    """The fetch that does `work`: the one in progress, or a new one.

    Raises:
        RuntimeError: the caller is a signal handler that has interrupted the start of this very fetch.
    """
    mine = Fetch(work)
    try:
        fetch = _running.setdefault(mine.key, mine)
        if fetch is mine:
            _start(fetch)
    except BaseException:  # Ctrl-C: others may already be waiting for it.
        if _running.get(mine.key) is mine:
            _start(mine)
        raise
    if fetch.starter == threading.get_ident():
        raise RuntimeError("a signal handler cannot get a token from the provider whose fetch it interrupted")
    return fetch


def is_running(work: Callable[[], Any]) -> bool:
    """Whether a fetch that does `work` is in progress."""
    return key_of(work) in _running


def in_background() -> bool:
    """Whether this thread is running a fetch."""
    return isinstance(current_work(), Fetch)


def _start(fetch: Fetch) -> None:
    try:
        if in_background():  # If a provider asks another one, one thread is enough.
            fetch.run()
        else:
            Worker("stkai-token").start(fetch.run)
    except NoThreadError:  # For example during interpreter shutdown.
        fetch.run()
    fetch.starter = None


def key_of(work: Callable[..., object]) -> Hashable:
    """The identity of a fetch: the process, the work and, unless its token is for all, the context variables.

    Bound methods are equal if their objects and functions are. A forked child does not have its parent's threads.
    """
    is_for_all = getattr(getattr(work, "__self__", None), "token_is_for_all", False)
    return os.getpid(), work, None if is_for_all else _context_key()


def _context_key() -> Hashable:
    """The context variables, compared by identity: the fetch keeps the values alive, and some cannot be compared.

    OpenTelemetry's variable is left out, since it contains the span of each call.
    """
    ours = {var for var in (ENTERED, FETCHING, _library_variable()) if var is not None}
    each = ((var, value) for var, value in copy_context().items() if var not in ours)
    return frozenset(
        (var, id(value)) for var, value in each if not type(value).__module__.startswith("opentelemetry.")
    )


def _outside_of_event_loops() -> Context:
    """The current context, changed so that code can start its own event loop, and no call's options apply."""
    context = copy_context()
    context.run(ENTERED.set, ())
    library = _library_variable()
    if library is not None:
        context.run(library.set, None)
    return context


def _library_variable() -> "ContextVar[Any] | None":
    """The variable in which sniffio keeps the name of the async library, if it is in use."""
    sniffio = sys.modules.get("sniffio")
    return None if sniffio is None else sniffio.current_async_library_cvar


@contextmanager
def named_errors(provider: object) -> Iterator[None]:
    """Turn every exception of a provider, except interrupts, into an AuthenticationError that names the provider."""
    try:
        yield
    except AuthenticationError:
        raise
    except Exception as error:
        raise_interrupt(error)
        text = f"{type(provider).__name__} could not get a token: {describe(error)}"
        raise AuthenticationError(text, error) from error
