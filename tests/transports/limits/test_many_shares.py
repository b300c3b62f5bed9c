"""Hundreds of shares in one process: a few threads and connections make the calls of all of them."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest

from stkai import PerKey, SystemClock, TokenBucket
from stkai.stores import Ask, FileStore, GroupRate, Lease, MemoryStore
from stkai.stores import _background_calls as calls
from stkai.transports import AsyncLimiterTransport
from stkai.transports._limits import store_client

from ...support.world import World

SHARES = 100


class Counting:
    """A store of a user's own, which counts the calls that it answers at once, and may let them wait."""

    def __init__(self) -> None:
        self._store = MemoryStore(SystemClock())
        self._lock = threading.Lock()
        self._busy = self.most_busy = self.most_threads = 0
        self.asked: list[str] = []
        self.gate, self.is_full = threading.Event(), threading.Event()
        self.gate.set()

    def lease(self, ask: Ask) -> Lease:
        with self._lock:
            self.asked.append(ask.share)
            self._busy += 1
            self.most_busy = max(self.most_busy, self._busy)
            if self._busy == calls.MAX_CALLS:
                self.is_full.set()
            self.most_threads = max(self.most_threads, threading.active_count())
        try:
            self.gate.wait(20)
            return self._store.lease(ask)
        finally:
            with self._lock:
                self._busy -= 1

    def amend(self, epoch: int, law: GroupRate) -> bool:
        return self._store.amend(epoch, law)

    def close(self) -> None:
        self.gate.set()


@pytest.fixture
def store() -> Iterator[Counting]:
    found = Counting()
    yield found
    found.close()


def layer_of(store: Any) -> AsyncLimiterTransport:
    """A layer with a share for each path."""
    limiter = PerKey(
        lambda request: request.url.path, lambda key: TokenBucket(1e4, 1, share=key, store=store)
    )
    return AsyncLimiterTransport(httpx.MockTransport(lambda _: httpx.Response(200)), limiter)


async def visit(layer: AsyncLimiterTransport, number: int) -> None:
    await layer.handle_async_request(httpx.Request("GET", f"http://test/{number}"))


@pytest.mark.no_cover
async def test_a_few_threads_make_the_calls_of_many_shares(event_loop: World, store: Counting) -> None:
    before, layer = threading.active_count(), layer_of(store)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(SHARES):
                tasks.start_soon(visit, layer, number)
    assert len(set(store.asked)) == SHARES
    assert store.most_busy <= calls.MAX_CALLS
    assert (
        store.most_threads <= before + 2 * calls.MAX_CALLS
    )  # A store of a user's own may have to be given up.


@pytest.mark.no_cover
async def test_many_shares_in_files_need_a_few_threads(
    event_loop: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    threads, busy, most_busy, lease = set[str](), set[int](), [0], FileStore.lease

    def note(store: FileStore, ask: Ask) -> Lease:
        threads.add(threading.current_thread().name)
        busy.add(threading.get_ident())
        most_busy.append(len(busy))
        try:
            return lease(store, ask)
        finally:
            busy.remove(threading.get_ident())

    monkeypatch.setattr(FileStore, "lease", note)
    layer = layer_of(f"file://{tmp_path}")
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(SHARES):
                tasks.start_soon(visit, layer, number)
    assert threads == {"stkai-store"}, "no further thread limits the time of a call"
    assert max(most_busy) <= calls.MAX_CALLS


@pytest.mark.no_cover
async def test_a_store_that_hangs_holds_up_its_shares_together(event_loop: World, store: Counting) -> None:
    store.gate.clear()
    before, layer = threading.active_count(), layer_of(store)
    with anyio.fail_after(10):  # With 0.8 s for each of them, 24 s.
        async with anyio.create_task_group() as tasks:
            for number in range(3 * SHARES):
                tasks.start_soon(visit, layer, number)
    assert threading.active_count() <= before + 2 * calls.MAX_CALLS


async def test_a_request_that_is_cancelled_before_its_call_began_makes_none(
    event_loop: World, monkeypatch: pytest.MonkeyPatch, store: Counting
) -> None:
    # A busy machine may take a second to start the threads.
    monkeypatch.setattr(store_client, "_STORE_TIMEOUT", 60.0)
    store.gate.clear()
    layer = layer_of(store)
    async with anyio.create_task_group() as tasks:
        for number in range(calls.MAX_CALLS):
            tasks.start_soon(visit, layer, number)
        assert await anyio.to_thread.run_sync(store.is_full.wait, 10)
        with anyio.move_on_after(0.02):
            await visit(layer, SHARES)
        store.gate.set()
    await visit(layer, SHARES + 1)
    assert f"/{SHARES + 1}" in store.asked
    assert f"/{SHARES}" not in store.asked


def test_calls_that_hang_do_not_hold_up_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "STUCK_AFTER", 0.02)
    background, end, done = calls.BackgroundCalls(), threading.Event(), threading.Event()

    def hang() -> None:
        end.wait()

    try:
        for _ in range(2 * calls.MAX_CALLS):
            background.later(0.0, hang)
        while not done.wait(0.05):
            background.later(0.0, done.set)
    finally:
        end.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_a_call_ends_no_longer_counts() -> None:
    background, called = calls.BackgroundCalls(), threading.Event()
    ended: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()

    def exit_thread() -> None:
        ended.put(threading.current_thread())
        raise SystemExit

    for _ in range(calls.MAX_CALLS):
        background.later(0.0, exit_thread)
    for _ in range(calls.MAX_CALLS):
        ended.get(timeout=10).join()
    background.later(0.0, called.set)
    assert called.wait(0.5)


async def test_a_call_for_which_no_thread_can_be_started_is_made_in_this_one(
    event_loop: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def cannot_start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(store_client, "background", calls.BackgroundCalls())
    layer = layer_of(f"file://{tmp_path}")
    with anyio.fail_after(10), monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot_start)
        await visit(layer, 1)
    await visit(layer, 1)


async def test_a_call_gets_a_thread_later_if_one_is_busy_and_no_other_can_be_started(
    event_loop: World, monkeypatch: pytest.MonkeyPatch, store: Counting
) -> None:
    monkeypatch.setattr(store_client, "STUCK_AFTER", 0.02)
    background, end = calls.BackgroundCalls(), threading.Event()

    def hang() -> None:
        end.wait()

    background.later(0.0, hang)
    failures, start = [RuntimeError("can't start new thread")] * 3, threading.Thread.start

    def may_start(thread: threading.Thread) -> None:
        if thread.name == "stkai-store" and failures:
            raise failures.pop()
        start(thread)

    monkeypatch.setattr(store_client, "background", background)
    monkeypatch.setattr(threading.Thread, "start", may_start)
    try:
        with anyio.fail_after(10):
            await visit(layer_of(store), 1)
    finally:
        end.set()
    assert not failures
