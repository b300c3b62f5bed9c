"""Forked children, as web servers and process pools make them: none gets stuck, and none gets another's answer."""

import gc
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest

import stkai
from stkai import AimdLimiter, AllOf, InFlight, PerKey, TokenBucket, _abandonable
from stkai._abandonable import do_within, idle_workers
from stkai.testing import FakeClock, QuotaServer
from stkai.transports import Turn
from stkai.transports._limits.sources.request_limits import Window

from ..support.crowd import took
from ..support.threads import wait_until
from ..support.wire import Wire
from ..support.world import World
from .stacks import client_of, provider_of

CHILDREN = 4


class Children:
    """Forks children that each run a function; a child succeeds if its function does, and is killed if it hangs."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def fork(self, run: Callable[[], object]) -> None:
        with warnings.catch_warnings():
            # Python 3.12 warns about a fork while threads run, which is what is tested here.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            self.pids.append(pid)
            return
        signal.alarm(120)
        status = 1
        try:
            run()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)

    def wait(self) -> list[int]:
        """Their exit statuses; 0 is success."""
        return [os.waitpid(pid, 0)[1] for pid in self.pids]


@pytest.fixture(autouse=True)
def untraced_threads() -> Iterator[None]:
    """Threads without a tracer: coverage's tracer has its own lock, and a child may inherit it locked."""
    tracer = threading.gettrace()
    threading.settrace(None)
    yield
    threading.settrace(tracer)


def test_a_child_does_not_wait_for_an_idle_thread_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_abandonable, "IDLE_TIMEOUT", 30.0)
    children, answer = Children(), partial(do_within, 30.0, lambda: "answer")
    answer()
    wait_until(lambda: bool(idle_workers.workers))
    children.fork(answer)
    assert children.wait() == [0]
    idle_workers.workers.clear()


@pytest.mark.parametrize("limiter", [TokenBucket, AimdLimiter])
def test_forked_children_of_a_busy_parent_can_use_its_limiter_and_tokens(
    server: QuotaServer, limiter: type[TokenBucket] | type[AimdLimiter]
) -> None:
    policy, provider = limiter(1_000_000, 1.0), provider_of(server)
    busy = threading.Event()
    world, children = World("sync"), Children()

    made = partial(client_of, world, auth=provider, rate_limit=policy, retry=stkai.RetryPolicy())

    def calls(client: stkai.HttpClient, who: str) -> None:
        for number in range(20):
            response = client.post(f"{server.url}/echo", data=f"{who}-{number}", timeout=60)
            assert response.status_code == 200

    def child(number: int) -> None:
        with made() as client:
            calls(client, f"child-{number}")

    def keep_the_locks_busy() -> None:
        while not busy.is_set():
            took(policy, 0.0)
            time.sleep(0)

    parent = made()
    # By then, everything is imported, and OpenSSL has read the certificates of the parent's client: a child would wait
    # for ever for a lock that a thread of its parent held in either.
    calls(parent, "before")
    threads = [threading.Thread(target=keep_the_locks_busy) for _ in range(2)]
    threads.append(threading.Thread(target=calls, args=(parent, "parent")))
    for thread in threads:
        thread.start()
    try:
        for number in range(CHILDREN):
            children.fork(partial(child, number))
        assert children.wait() == [0] * CHILDREN
    finally:
        busy.set()
        for thread in threads:
            thread.join()
        parent.close()
    assert server.count(path="/echo", status=200) == 20 * (CHILDREN + 2)


@pytest.mark.parametrize("how", ["closes", "drops"])
def test_a_child_that_ends_the_response_of_its_parent_leaves_the_connection_to_it(
    server: QuotaServer, how: str
) -> None:
    client, children = client_of(World("sync")), Children()
    responses = [client.post_stream(f"{server.url}/echo", data="x" * 300_000)]

    def child() -> None:
        if how == "closes":
            responses[0].close()
        responses.clear()
        gc.collect()
        client.close()

    children.fork(child)
    assert children.wait() == [0]
    assert len(responses[0].read()) > 300_000
    assert client.post(f"{server.url}/echo", data="again").status_code == 200
    assert server.connections == 1
    client.close()


def test_a_child_forked_while_the_settings_are_read_can_read_them_too() -> None:
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with stkai.STKAI._lock:
            locked.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait()
    children = Children()
    children.fork(lambda: stkai.STKAI.config)
    assert children.wait() == [0]
    done.set()
    holder.join()


def test_a_child_does_not_inherit_its_parents_place_in_the_queue() -> None:
    clock, policy = FakeClock(autojump=False), TokenBucket(1, 60.0, burst=1)
    client = client_of(World("sync"), rate_limit=policy, transport=Wire(lambda _: 200), clock=clock)
    client.post("https://api.example.com/")
    waiting = threading.Thread(
        target=client.post, args=("https://api.example.com/",), kwargs={"max_wait_time": None}
    )
    waiting.start()
    clock.wait_for_sleepers(1)
    children = Children()

    def child() -> None:
        assert policy.waiting == 0
        assert took(policy, 60.0), "the first permit is the child's own"

    children.fork(child)
    assert children.wait() == [0]
    assert policy.waiting == 1
    clock.advance(60.0)
    waiting.join()


def test_a_child_asks_a_limiter_of_the_users_own_although_its_parent_is_asking_it() -> None:
    class Gate(stkai.Limiter):
        def ask(self, turn: Turn, now: float) -> float:
            return 60.0 if os.getpid() == parent and now < 60.0 else 0.0

    parent, clock = os.getpid(), FakeClock(autojump=False)
    both = [PerKey(lambda request: request.url.host, lambda _: Gate()), InFlight(8)]
    client = client_of(World("sync"), rate_limit=both, transport=Wire(lambda _: 200), clock=clock)
    waiting = threading.Thread(target=client.post, args=("https://api.example.com/",))
    waiting.start()
    clock.wait_for_sleepers(1)
    children = Children()
    children.fork(partial(client.post, "https://api.example.com/", max_wait_time=1))
    assert children.wait() == [0]
    clock.advance(60.0)
    waiting.join()


def test_a_fork_renews_each_of_many_limits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    both = AllOf(PerKey(lambda request: request.url.host, lambda _: TokenBucket(1, 1)), TokenBucket(100, 1))
    renewed, children = list[object](), Children()
    monkeypatch.setattr(Window, "recover", lambda source, _: renewed.append(source))
    plans = [both.plan_for(httpx.Request("POST", f"https://{number}.example.com")) for number in range(100)]

    def child() -> None:
        ours = {source for plan in plans if plan is not None for source in plan.sources}
        assert len([source for source in renewed if source in ours]) == len(ours) == 101

    children.fork(child)
    assert children.wait() == [0]


async def test_a_client_used_before_a_fork_opens_its_own_connections_after_it(
    world: World, server: QuotaServer
) -> None:
    children = Children()
    client = client_of(world, auth=provider_of(server))

    async def calls(who: str) -> None:
        for number in range(20):
            what = f"{who}-{number}"
            response = await world.call(client.post, f"{server.url}/echo", data=what, timeout=10)
            assert response.json()["body"] == f'"{what}"', f"{what} got {response.text}"

    def child(who: str) -> None:
        with ThreadPoolExecutor(1) as pool:  # This thread's event loop belongs to the parent.
            pool.submit(lambda: world.run(calls(who))).result()

    await calls("before")
    for number in range(CHILDREN):
        children.fork(partial(child, f"child-{number}"))
    await calls("parent")
    assert children.wait() == [0] * CHILDREN
    await calls("after")
    await world.close(client)
    assert server.count(path="/echo", status=200) == 20 * (CHILDREN + 3)


def test_a_fork_while_connections_are_in_use_leaves_the_parents_streams_intact(server: QuotaServer) -> None:
    stkai.STKAI.configure(http={"max_connections": 1})
    children, done = Children(), threading.Event()
    client = client_of(World("sync"))
    body = "x" * 1_000_000
    stream = client.post_stream(f"{server.url}/echo", data=body)
    parts = stream.iter_bytes()
    received = next(parts)

    def wait_in_line() -> None:
        client.post(f"{server.url}/echo", data="waiting")
        done.set()

    threading.Thread(target=wait_in_line).start()

    def child(who: str) -> None:
        for number in range(20):
            answer = client.post(f"{server.url}/echo", data=f"{who}-{number}", timeout=10)
            assert answer.json()["body"] == f'"{who}-{number}"'
        stream.close()
        assert client.post(f"{server.url}/echo", timeout=10).status_code == 200

    for number in range(CHILDREN):
        children.fork(partial(child, f"child-{number}"))
    assert children.wait() == [0] * CHILDREN
    assert not done.is_set(), "the only connection of the parent is in use"
    received += b"".join(parts)
    assert body.encode() in received
    assert done.wait(10)
    client.close()
