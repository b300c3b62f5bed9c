"""A token fetch in a background thread, shared by the threads and tasks that wait for it.

The thread is a daemon, so that a program can exit while a token endpoint hangs, and a forked child is not held up by
its parent's fetch.
"""

import copy
import os
import sys
import threading
from collections.abc import Callable, Hashable
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final

from ..._abandonable import Job
from ..._errors import AuthenticationError, describe
from ..._process import raise_interrupt
from .._options import ENTERED


class Fetch(Job):
    """A fetch in a background thread: wait for it, then ask for its `result`.

    Args:
        work: gets the token, usually a provider's method.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(self._fetch, _outside_of_event_loops())
        self.key = key_of(work)
        self.starter: int | None = threading.get_ident()
        self._fetches = work
        self._token: Any = ""
        self._failure: AuthenticationError | None = None

    def _fetch(self) -> None:
        try:
            self._token = self._fetches()
        except AuthenticationError as error:
            self._failure = error
        except Exception as error:  # noqa: BLE001 - raised in everyone who waits
            self._failure = failure_of(getattr(self._fetches, "__self__", self._fetches), error)
        finally:
            if _running.get(self.key) is self:  # The next caller starts another fetch.
                _running.pop(self.key, None)

    def result(self) -> Any:
        """The token, or the headers, of a fetch that has ended.

        Raises:
            AuthenticationError: a copy for each caller, since each error carries the request that failed with it.
        """
        if self._failure is not None:
            raise copy.copy(self._failure) from self._failure.cause
        if self._error is not None:
            raise self._error
        return self._token


FETCHING: Final[ContextVar[tuple[Any, ...]]] = ContextVar("stkai.fetching", default=())
"""The fetches that this code is a part of."""

_running: Final[dict[Hashable, Fetch]] = {}
"""The fetches in progress, by process and by work."""


def join(work: Callable[[], Any]) -> Fetch:
    """The fetch that does `work`: the one in progress, or a new one.

    Raises:
        RuntimeError: a signal handler asks for a token while it interrupts the start of this very fetch.
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
    return isinstance(threading.current_thread(), _Background)


class _Background(threading.Thread):
    """The thread of a fetch; it keeps the context variables of the caller that started it."""


def _start(fetch: Fetch) -> None:
    try:
        if in_background():  # A provider that asks another provider: one thread is enough.
            fetch.run()
        else:
            _Background(target=fetch.run, name="stkai-token", daemon=True).start()
    except RuntimeError:  # No thread can be started, for example at interpreter shutdown.
        fetch.run()
    fetch.starter = None


def key_of(work: Callable[..., object]) -> Hashable:
    """What identifies a fetch: the process, the work and, unless its token is for all, the context variables.

    Bound methods compare equal if object and function do. A forked child does not have its parent's threads.
    """
    is_for_all = getattr(getattr(work, "__self__", None), "token_is_for_all", False)
    return os.getpid(), work, None if is_for_all else _context_key()


def _context_key() -> Hashable:
    """The context variables by identity: the fetch keeps the values alive, and some cannot be compared."""
    ours = {var for var in (ENTERED, FETCHING, _library_variable()) if var is not None}
    return frozenset((var, id(value)) for var, value in copy_context().items() if var not in ours)


def _outside_of_event_loops() -> Context:
    """The current context, changed so that code in it may start its own event loop, and no call's options apply."""
    context = copy_context()
    context.run(ENTERED.set, None)
    library = _library_variable()
    if library is not None:
        context.run(library.set, None)
    return context


def _library_variable() -> "ContextVar[Any] | None":
    """Where sniffio keeps the name of the async library, if it is in use."""
    sniffio = sys.modules.get("sniffio")
    return None if sniffio is None else sniffio.current_async_library_cvar


def failure_of(provider: object, error: Exception) -> AuthenticationError:
    """The error for whatever a provider raised; raises what a signal handler raised in the meantime."""
    raise_interrupt(error)
    return AuthenticationError(f"{type(provider).__name__} could not get a token: {describe(error)}", error)
