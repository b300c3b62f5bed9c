"""One token fetch at a time, shared by all callers that need the same token: in a thread, and in an event loop.

A fetch that several threads and tasks wait for runs once, in a background thread. The thread is a daemon, so that a
program can exit while a token endpoint hangs, and a forked child is not held up by its parent's fetch.
"""

import copy
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final
from weakref import WeakKeyDictionary

from ..._abandonable import AbandonableWork, Latch, NoThreadError, current_work, start_in_thread
from ..._errors import AuthenticationError, describe
from ..._event_loops import running_loop
from ..._process import raise_interrupt
from .._options import ENTERED


class Fetch(AbandonableWork):
    """A fetch in a background thread: wait for it, then ask for its `result`."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(self._fetch, _outside_of_event_loops())
        self.key = key_of(work)
        self.starter: int | None = threading.get_ident()
        self._fetches = work

    def _fetch(self) -> Any:
        mine: list[Any] = [getattr(self._fetches, "__self__", None)]
        _FETCHING.set((*_FETCHING.get(), mine))
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


_FETCHING: Final[ContextVar[tuple[list[object], ...]]] = ContextVar("stkai.fetching", default=())
"""The fetches that this code is part of: each is a list with its provider, emptied when the fetch ends."""

_running: Final[dict[Hashable, Fetch]] = {}
"""The fetches in progress, by process and by work."""


def join(work: Callable[[], Any]) -> Fetch:
    """The fetch that does `work`: the one in progress, or a new one."""
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
            start_in_thread(fetch.run, "stkai-token")
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
    ours = {var for var in (ENTERED, _FETCHING, _library_variable()) if var is not None}
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


@contextmanager
def fetching(provider: object) -> Iterator[None]:
    """Refuse to wait for a token that this very code is fetching."""
    outer = tuple(filter(None, _FETCHING.get()))  # Those that are still in progress.
    if any(each is provider for fetching in outer for each in fetching):
        raise AuthenticationError(
            f"{type(provider).__name__} is asked for a token while it gets one: it sends its request through a client"
            " that it signs for (give it another one, without auth), or a signal handler uses the client that it"
            " interrupted"
        )
    mine = list[object]()
    token = _FETCHING.set((*outer, mine))
    try:
        mine.append(provider)  # Not before the `try`, where an interrupt would leave it in the list for good.
        yield
    finally:
        mine.clear()  # A task that the fetch has started still has a copy of the context.
        with suppress(ValueError):  # The coroutine is closed in another context.
            _FETCHING.reset(token)


class _Shared(Latch):
    """A fetch that one task leads for its event loop; it has neither token nor error if that task was cancelled."""

    token: Any = None
    error: AuthenticationError | None = None


_by_loop: Final[WeakKeyDictionary[Any, dict[Hashable, _Shared]]] = WeakKeyDictionary()
"""Fetches in progress that a task leads, by loop: a loop must not wait for another's task."""


async def share_in_loop(key: Hashable, work: Callable[[], Awaitable[Any]]) -> Any:
    """What `work` returns: the fetch of that key that another task of this event loop leads, or a new one.

    If the task that leads it is cancelled, the next one takes over.
    """
    running = _by_loop.setdefault(running_loop(), {})
    while (other := running.get(key)) is not None:
        await other.await_()
        if other.error is not None:
            raise copy.copy(other.error) from other.error.cause
        if other.token is not None:
            return other.token
    shared = running[key] = _Shared()
    try:
        shared.token = await work()
    except AuthenticationError as error:
        shared.error = error
        raise
    finally:  # Even if cancelled: the first of the waiting tasks takes over.
        del running[key]
        shared.run()
    return shared.token
