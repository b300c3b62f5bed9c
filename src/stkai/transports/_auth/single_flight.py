"""One token fetch at a time, shared by everyone who needs it: in a thread, and in an event loop."""

import copy
import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakKeyDictionary

from ..._errors import AuthenticationError, DeadlineExceededError
from ..._event_loops import running_loop
from .fetch import failure_of, join, key_of

if TYPE_CHECKING:
    import anyio


class Provider(Protocol):
    """Where tokens come from; `AuthProvider` is one.

    Attributes:
        longest_fetch: seconds after which nobody waits any longer for one fetch.
    """

    longest_fetch: float

    def get_access_token(self) -> str: ...

    async def aget_access_token(self) -> str: ...


def get_token(provider: Provider, seconds: float) -> str:
    """A token from the provider, for a thread that can wait this many seconds.

    Raises:
        AuthenticationError: the provider raised an error.
        DeadlineExceededError: it takes longer. The fetch continues, for later callers.
    """
    if seconds <= 0:
        raise _too_late()
    if seconds == math.inf:
        with _named_errors(provider):
            return provider.get_access_token()
    fetch = join(provider.get_access_token, provider.longest_fetch)
    if not fetch.wait(seconds):
        raise _too_late()
    return fetch.result()


async def aget_token(provider: Provider, seconds: float) -> str:
    """A token from the provider, for a task that can wait this many seconds.

    The tasks of one event loop share one fetch. If the task that leads it is cancelled, the next one takes over.

    Raises:
        AuthenticationError: the provider raised an error.
        DeadlineExceededError: it takes longer.
    """
    import anyio

    if seconds <= 0:
        raise _too_late()
    with anyio.move_on_after(seconds):
        return await _share_in_loop(provider)
    raise _too_late()


class _Shared:
    """A fetch that one task leads for its event loop."""

    def __init__(self, done: "anyio.Event") -> None:
        self.done = done
        self.token: str | None = None
        self.error: AuthenticationError | None = None


_by_loop: Final[WeakKeyDictionary[Any, dict[Hashable, _Shared]]] = WeakKeyDictionary()
"""Fetches in progress that a task leads. Events belong to a loop, and one loop must not wait for another's task."""


async def _share_in_loop(provider: Provider) -> str:
    import anyio

    running, key = _by_loop.setdefault(running_loop(), {}), key_of(provider.aget_access_token)
    while (other := running.get(key)) is not None:
        await other.done.wait()
        if other.error is not None:
            raise copy.copy(other.error) from other.error.cause
        if other.token is not None:
            return other.token
    shared = running[key] = _Shared(anyio.Event())
    try:
        with _named_errors(provider):
            shared.token = await provider.aget_access_token()
    except AuthenticationError as error:
        shared.error = error
        raise
    finally:  # Also on cancellation: the first of the waiting tasks takes over.
        del running[key]
        shared.done.set()
    return shared.token


@contextmanager
def _named_errors(provider: Provider) -> Iterator[None]:
    """Turn whatever the provider raises into an AuthenticationError that names the provider."""
    try:
        yield
    except AuthenticationError:
        raise
    except Exception as error:
        raise failure_of(provider, error) from error


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("the call's deadline passed while it waited for an access token")
