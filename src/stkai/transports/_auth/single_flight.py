"""One token fetch at a time, shared by all callers that need the same token: in a thread, and in an event loop."""

import copy
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from ..._abandonable import AbandonableWork, Latch
from ..._errors import AuthenticationError, DeadlineExceededError
from ..._event_loops import anyio, run_soon, running_loop
from .._call import cannot_send
from .._layer_checks import signature_of
from .provider import FETCHING, AuthProvider, Fetch, has_own_headers, join, key_of, named_errors

Signature = str | Mapping[str, str]
"""An access token, or the headers that sign a request."""


def get_token(provider: AuthProvider, seconds: float, closing: Latch | None = None) -> Signature:
    """Get a token, or headers, from the provider, for a thread that can wait this many seconds.

    Raises a DeadlineExceededError if it takes longer, and a RuntimeError once `closing` is set; the fetch continues for
    later callers. A provider called in the caller's own thread cannot be timed out.
    """
    if seconds <= 0:
        raise _too_late()
    with _fetching(provider):
        if seconds == math.inf and not provider.token_is_for_all:
            with named_errors(provider):
                return _work(provider)()
        fetch = join(_work(provider))
        for wait in _waits(provider, seconds):
            if _has_ended(fetch, wait, closing or Latch()):
                return cast("Signature", fetch.result())
            spare = _spare(provider)
            if spare is not None:
                return spare
    raise _too_late()


def _has_ended(fetch: Fetch, seconds: float, closing: Latch) -> bool:
    either = Latch()
    with fetch.ending_also(either), closing.ending_also(either):
        either.wait(seconds)
    if closing.is_done and not fetch.is_done:
        raise cannot_send()
    return fetch.is_done


async def aget_token(provider: AuthProvider, seconds: float, closing: Latch | None = None) -> Signature:
    """Like `get_token`, for a task.

    The tasks of one event loop share one fetch. If the task that leads it is cancelled, the next one takes over.
    """
    if seconds <= 0:
        raise _too_late()
    closing = closing or Latch()
    with _fetching(provider):
        for wait in _waits(provider, seconds):
            with anyio.move_on_after(wait) as scope:
                leaving = AbandonableWork(partial(run_soon, running_loop(), scope.cancel))
                with closing.ending_also(leaving):
                    return await _share_in_loop(provider)
            if closing.is_done:
                raise cannot_send()
            spare = _spare(provider)
            if spare is not None:
                return spare
    raise _too_late()


def _work(provider: AuthProvider) -> Callable[[], Signature]:
    return provider.get_auth_headers if has_own_headers(provider) else provider.get_access_token


async def _awork(provider: AuthProvider) -> Signature:
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


def _spare(provider: AuthProvider) -> Signature | None:
    """The old token, or headers with it. Call this only during a renewal: asking for headers would start one here."""
    token = _old_token(provider)
    if token is None or not has_own_headers(provider):
        return token
    with named_errors(provider):
        return provider.get_auth_headers()


@contextmanager
def _fetching(provider: AuthProvider) -> Iterator[None]:
    """Refuse to wait for a token that this very code is fetching."""
    outer = tuple(filter(None, FETCHING.get()))  # Those that are still in progress.
    if any(each is provider for fetching in outer for each in fetching):
        raise AuthenticationError(
            f"{type(provider).__name__} is asked for a token while it gets one: it sends its request through a client"
            " that it signs for (give it another one, without auth), or a signal handler uses the client that it"
            " interrupted"
        )
    mine = list[AuthProvider]()
    token = FETCHING.set((*outer, mine))
    try:
        mine.append(provider)  # Not before the `try`, where an interrupt would leave it in the list for good.
        yield
    finally:
        mine.clear()  # A task that the fetch has started still has a copy of the context.
        with suppress(ValueError):  # The coroutine is closed in another context.
            FETCHING.reset(token)


class _Shared(Latch):
    """A fetch that one task leads for its event loop; it has neither token nor error if that task was cancelled."""

    token: Signature | None = None
    error: AuthenticationError | None = None


_by_loop: Final[WeakKeyDictionary[Any, dict[Hashable, _Shared]]] = WeakKeyDictionary()
"""Fetches in progress that a task leads, by loop: a loop must not wait for another's task."""


async def _share_in_loop(provider: AuthProvider) -> Signature:
    running, key = _by_loop.setdefault(running_loop(), {}), key_of(provider.aget_access_token)
    while (other := running.get(key)) is not None:
        await other.await_()
        if other.error is not None:
            raise copy.copy(other.error) from other.error.cause
        if other.token is not None:
            return other.token
    shared = running[key] = _Shared()
    try:
        with named_errors(provider):
            shared.token = await _awork(provider)
    except AuthenticationError as error:
        shared.error = error
        raise
    finally:  # Even if cancelled: the first of the waiting tasks takes over.
        del running[key]
        shared.run()
    return shared.token


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("the call's deadline passed while it waited for an access token")
