"""A fetch in a background thread that threads and tasks can wait for.

A blocking call cannot be interrupted, but the wait for it can: by a deadline, by cancellation, by Ctrl-C. The thread
is a daemon, so that a program can exit while a token endpoint hangs. There are no locks here: each waiter brings its
own queue or event, and shared state changes by single atomic operations. A signal handler can therefore wait for a
token in the very thread that it interrupted, and a forked child is not held up by its parent's fetch.
"""

import copy
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from typing import Any, Final

from ..._errors import AuthenticationError


class Fetch:
    """A fetch in a background thread: `wait` for it, then ask for its `result`.

    Args:
        key: identifies it while it runs.
        longest: seconds after which everyone stops waiting, and the next caller starts another fetch.
    """

    def __init__(self, key: Hashable, longest: float) -> None:
        self.is_done = False
        self._key, self._longest = key, longest
        self._starter = threading.get_ident()
        self._claims = itertools.count()
        self._is_claimed = False
        self._token = ""
        self._error: BaseException | None = None
        self._waiting: dict[int, Callable[[], object]] = {}

    @property
    def waiting(self) -> int:
        """How many threads and tasks are waiting for it."""
        return len(self._waiting)

    def needs_start(self) -> bool:
        """Whether a signal handler interrupted this thread before it started the fetch."""
        return not self._is_claimed and self._starter == threading.get_ident()

    def run(self, work: Callable[[], str]) -> None:
        """Do the work, unless another thread is doing it, and wake everyone who waits."""
        if next(self._claims):
            return
        self._is_claimed = True
        try:
            self._token = work()
        except AuthenticationError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - raised in everyone who waits
            self._error = failure_of(getattr(work, "__self__", work), error)
        except BaseException as error:  # noqa: BLE001 - the same
            self._error = error
        finally:
            self._leave()
            self.is_done = True
            while self._waiting:
                _, wake = self._waiting.popitem()
                wake()

    def wait(self, seconds: float = math.inf) -> bool:
        """Block for at most `seconds`; returns whether the fetch has ended.

        Raises:
            AuthenticationError: the fetch has taken longer than `longest`.
        """
        bell: SimpleQueue[None] = SimpleQueue()
        longest = min(seconds, self._longest)
        with self._waking(lambda: bell.put(None)):
            try:
                bell.get(timeout=None if longest == math.inf else min(longest, threading.TIMEOUT_MAX))
            except Empty:
                if longest < seconds:
                    raise self._given_up() from None
                return False
        return True

    async def await_(self) -> None:
        """Suspend this task until the fetch has ended.

        Raises:
            AuthenticationError: the fetch has taken longer than `longest`.
        """
        import anyio

        event, (_, call_soon) = anyio.Event(), event_loop()

        def wake() -> None:
            with suppress(RuntimeError):  # The loop is closed.
                call_soon(event.set)

        with self._waking(wake), anyio.move_on_after(self._longest):
            await event.wait()
        if not event.is_set():
            raise self._given_up()

    def _given_up(self) -> AuthenticationError:
        self._leave()
        return AuthenticationError(f"no access token came within {self._longest:g} s")

    def _leave(self) -> None:
        """Let the next caller start another fetch."""
        if _running.get(self._key) is self:
            _running.pop(self._key, None)

    @contextmanager
    def _waking(self, wake: Callable[[], object]) -> Iterator[None]:
        """Call `wake` when the fetch has ended, possibly twice."""
        self._waiting[id(wake)] = wake
        try:
            if self.is_done:
                wake()
            yield
        finally:
            self._waiting.pop(id(wake), None)

    def result(self) -> str:
        """The token of a fetch that has ended.

        Raises:
            AuthenticationError: a copy for each caller, since each error carries the request that failed with it.
        """
        if isinstance(self._error, AuthenticationError):
            raise copy.copy(self._error) from self._error.cause
        if self._error is not None:
            raise self._error
        return self._token


_running: Final[dict[Hashable, Fetch]] = {}
"""The fetches in progress, by process and by work."""


def join(work: Callable[[], str], longest: float = math.inf) -> Fetch:
    """The fetch that does `work`, usually a provider's method: the one in progress, or a new one.

    Nobody waits for it longer than `longest` seconds.
    """
    key = key_of(work)
    mine = Fetch(key, longest)
    try:
        fetch = _running.setdefault(key, mine)
        if fetch is mine or fetch.needs_start():
            _start(fetch, work)
    except BaseException:  # Ctrl-C: others may already be waiting for it.
        if _running.get(key) is mine:
            _start(mine, work)
        raise
    return fetch


def is_running(work: Callable[[], str]) -> bool:
    """Whether a fetch that does `work` is in progress."""
    return key_of(work) in _running


def in_background() -> bool:
    """Whether this thread is running a fetch."""
    return isinstance(threading.current_thread(), _Background)


class _Background(threading.Thread):
    """The thread of a fetch; it keeps the context variables of the caller that started it."""

    def __init__(self, fetch: Fetch, work: Callable[[], str]) -> None:
        super().__init__(name="stkai-token", daemon=True)
        self._fetch, self._work = fetch, work
        self._context = _outside_of_event_loops()

    def run(self) -> None:
        self._context.run(self._fetch.run, self._work)


def _start(fetch: Fetch, work: Callable[[], str]) -> None:
    if in_background():  # A provider that asks another provider: one thread is enough.
        fetch.run(work)
        return
    try:
        _Background(fetch, work).start()
    except RuntimeError:  # No thread can be started, for example at interpreter shutdown.
        fetch.run(work)


def key_of(work: Callable[..., object]) -> Hashable:
    # Bound methods compare equal if object and function do. A forked child does not have its parent's threads.
    return os.getpid(), work


def _outside_of_event_loops() -> Context:
    """The current context, changed so that code in it may start its own event loop."""
    context = copy_context()
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        context.run(sniffio.current_async_library_cvar.set, None)
    return context


def event_loop() -> tuple[Any, Callable[[Callable[[], object]], object]]:
    """The event loop of the current task, and a function that calls into it from another thread."""
    trio = sys.modules.get("trio")
    if trio is not None:
        with suppress(RuntimeError):  # This is not a trio task.
            trio.lowlevel.current_task()
            token = trio.lowlevel.current_trio_token()
            return token, token.run_sync_soon
    loop = sys.modules["asyncio"].get_running_loop()
    return loop, loop.call_soon_threadsafe


def failure_of(provider: object, error: Exception) -> AuthenticationError:
    msg = f"{type(provider).__name__} could not get a token: {type(error).__name__}: {error}"
    return AuthenticationError(msg, error)
