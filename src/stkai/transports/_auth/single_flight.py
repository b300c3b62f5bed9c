"""One fetch of a token at a time, in one background thread, for everyone who waits for it: threads and tasks.

A blocking call cannot be interrupted, but the wait for it can: by a deadline, by cancellation, by Ctrl-C. The thread
is a daemon, so that a program can exit while a token endpoint hangs. There are no locks here: each waiter brings a
queue or an event of its own, and shared state changes by single atomic operations. A signal handler can therefore wait
for a token in the very thread that it has interrupted, and a forked child is not held up by its parent's fetch.
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
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakKeyDictionary

from ..._errors import AuthenticationError, DeadlineExceededError

if TYPE_CHECKING:
    import anyio


class Provider(Protocol):
    """Where tokens come from; `AuthProvider` is one."""

    def get_access_token(self) -> str: ...

    async def aget_access_token(self) -> str: ...


def get_token(provider: Provider, seconds: float) -> str:
    """A token from the provider, for a thread that can wait for so many seconds.

    Raises:
        AuthenticationError: the provider raised an error.
        DeadlineExceededError: it takes longer. The fetch goes on, for those who come later.
    """
    if seconds <= 0:
        raise _too_late()
    if seconds == math.inf:
        with _named_errors(provider):
            return provider.get_access_token()
    fetch = join(provider.get_access_token)
    if not fetch.wait(seconds):
        raise _too_late()
    return fetch.result()


async def aget_token(provider: Provider, seconds: float) -> str:
    """A token from the provider, for a task that can wait for so many seconds.

    The tasks of one event loop share one fetch. When the task that leads it is cancelled, the next one takes over.

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


# The background thread


class Fetch:
    """A fetch that runs in a background thread: `wait` for it, then ask for its `result`."""

    def __init__(self) -> None:
        self.is_done = False
        self._starter = threading.get_ident()
        self._claims = itertools.count()
        self._is_claimed = False
        self._token = ""
        self._error: BaseException | None = None
        self._waiting: dict[int, Callable[[], object]] = {}

    @property
    def waiting(self) -> int:
        """How many threads and tasks wait for it."""
        return len(self._waiting)

    def needs_start(self) -> bool:
        """Whether this thread, which a signal handler has interrupted, has not got as far as starting it."""
        return not self._is_claimed and self._starter == threading.get_ident()

    def run(self, work: Callable[[], str], key: Hashable) -> None:
        """Do the work, unless another thread does, and wake everyone who waits."""
        if next(self._claims):
            return
        self._is_claimed = True
        try:
            self._token = work()
        except AuthenticationError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - raised by everyone who waits
            self._error = _failure(getattr(work, "__self__", work), error)
        except BaseException as error:  # noqa: BLE001 - the same
            self._error = error
        finally:
            _running.pop(key, None)
            self.is_done = True
            while self._waiting:
                _, wake = self._waiting.popitem()
                wake()

    def wait(self, seconds: float = math.inf) -> bool:
        """Block for so many seconds; whether the fetch has ended."""
        bell: SimpleQueue[None] = SimpleQueue()
        with self._waking(lambda: bell.put(None)):
            try:
                bell.get(timeout=None if seconds == math.inf else min(seconds, threading.TIMEOUT_MAX))
            except Empty:
                return False
        return True

    async def await_(self) -> None:
        """Suspend this task until the fetch has ended."""
        import anyio

        event, (_, call_soon) = anyio.Event(), _event_loop()

        def wake() -> None:
            with suppress(RuntimeError):  # The loop has ended.
                call_soon(event.set)

        with self._waking(wake):
            await event.wait()

    @contextmanager
    def _waking(self, wake: Callable[[], object]) -> Iterator[None]:
        """Have `wake` called when the fetch has ended; it may be called twice."""
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
"""The fetches in progress, by process and by their work."""


def join(work: Callable[[], str]) -> Fetch:
    """The fetch that does `work`, usually a provider's method: the one in progress, or a new one."""
    key, mine = _key(work), Fetch()
    try:
        fetch = _running.setdefault(key, mine)
        if fetch is mine or fetch.needs_start():
            _start(fetch, work, key)
    except BaseException:  # Ctrl-C: others may wait for it already.
        if _running.get(key) is mine:
            _start(mine, work, key)
        raise
    return fetch


def is_running(work: Callable[[], str]) -> bool:
    """Whether a fetch that does `work` is in progress."""
    return _key(work) in _running


def in_background() -> bool:
    """Whether this thread is one in which a fetch runs."""
    return isinstance(threading.current_thread(), _Background)


class _Background(threading.Thread):
    """The thread of a fetch; it keeps the context variables of the caller that started it."""

    def __init__(self, fetch: Fetch, work: Callable[[], str], key: Hashable) -> None:
        super().__init__(name="stkai-token", daemon=True)
        self._of = fetch, work, key
        self._context = _outside_of_event_loops()

    def run(self) -> None:
        fetch, work, key = self._of
        self._context.run(fetch.run, work, key)


def _start(fetch: Fetch, work: Callable[[], str], key: Hashable) -> None:
    if in_background():  # A provider that asks another one: one thread is enough.
        fetch.run(work, key)
        return
    try:
        _Background(fetch, work, key).start()
    except RuntimeError:  # No thread can be started, as when the interpreter shuts down.
        fetch.run(work, key)


def _key(work: Callable[..., object]) -> Hashable:
    # Methods are equal if they are the same method of the same object. A forked child lacks its parent's threads.
    return os.getpid(), work


def _outside_of_event_loops() -> Context:
    """The current context, in which code may start an event loop of its own."""
    context = copy_context()
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        context.run(sniffio.current_async_library_cvar.set, None)
    return context


# The tasks of an event loop


class _Shared:
    """A fetch that a task leads for its event loop."""

    def __init__(self, done: "anyio.Event") -> None:
        self.done = done
        self.token: str | None = None
        self.error: AuthenticationError | None = None


_by_loop: Final[WeakKeyDictionary[Any, dict[Hashable, _Shared]]] = WeakKeyDictionary()
"""The fetches in progress that tasks lead. Events belong to a loop, and one loop must not wait for another's task."""


async def _share_in_loop(provider: Provider) -> str:
    import anyio

    loop, _ = _event_loop()
    running, key = _by_loop.setdefault(loop, {}), _key(provider.aget_access_token)
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
    finally:  # When cancelled, too: the first of those who wait takes over.
        del running[key]
        shared.done.set()
    return shared.token


def _event_loop() -> tuple[Any, Callable[[Callable[[], object]], object]]:
    """The event loop of the current task, and its way to be called from another thread."""
    trio = sys.modules.get("trio")
    if trio is not None:
        with suppress(RuntimeError):  # There is no task of trio's.
            trio.lowlevel.current_task()
            token = trio.lowlevel.current_trio_token()
            return token, token.run_sync_soon
    loop = sys.modules["asyncio"].get_running_loop()
    return loop, loop.call_soon_threadsafe


# Errors


@contextmanager
def _named_errors(provider: Provider) -> Iterator[None]:
    """Turn whatever the provider raises into an AuthenticationError that names it."""
    try:
        yield
    except AuthenticationError:
        raise
    except Exception as error:
        raise _failure(provider, error) from error


def _failure(provider: object, error: Exception) -> AuthenticationError:
    msg = f"{type(provider).__name__} could not get a token: {type(error).__name__}: {error}"
    return AuthenticationError(msg, error)


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("the call's deadline passed while it waited for an access token")
