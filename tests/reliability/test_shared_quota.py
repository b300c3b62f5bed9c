"""Processes that share one quota: together they get no more than the quota, whatever happens to one or to the store.

How much of it they use is a matter of tests/simulation, in virtual time. Here the machine may be busy, and what counts
is how much was sent in all.
"""

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import pytest
from benchmarks._members import Group, Report, World, run_group
from benchmarks.kills import kill_members

import stkai
from stkai import TokenBucket
from stkai.stores import FileStore
from stkai.transports import TokenBucketTransport

from ..support import world
from ..support.forked import Forked
from ..support.redis_servers import Server, installed

pytestmark = pytest.mark.real_time

RATE = 50.0

in_a_file = pytest.mark.parametrize("store", ["file"], indirect=True)
in_redis = pytest.mark.parametrize("store", ["redis"], indirect=True)


@pytest.fixture(params=["file", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/store"
        return
    if not installed(request.param):
        pytest.skip(f"{request.param}-server is not installed: apt-get install {request.param}-server")
    with Server(request.param, tmp_path / "server") as server:
        yield server.url


Act = Callable[[float, list[BaseProcess]], None]


def served(group: Group, members: int, act: Act | None = None, part: float = 0.0) -> Report:
    """No caller gets an error, each member that survives is served, and together they do not exceed the quota.

    Args:
        part: how much of the quota they use at least, after the first half second.
    """
    for seconds in (group.seconds, 10 * group.seconds):  # A busy machine may let one wait for long.
        report = run_group(replace(group, seconds=seconds), act)
        least = part * RATE * (seconds - 0.5)
        if sum(map(bool, report.grants.values())) == members and len(report.after(0.5).all) >= least:
            break
    assert report.errors == []
    assert sum(map(bool, report.grants.values())) == members
    assert len(report.after(0.5).all) >= least
    assert_within_the_quota(report.all)
    return report


def assert_within_the_quota(sent: list[float]) -> None:
    """At no instant were more requests sent than the quota has permits since the start.

    A shorter stretch may have more: permits wait for requests that wake late, the first ones as well. The clocks of the
    server and of the test may differ by the time of one permit.
    """
    assert all(number <= RATE * seconds + 2 for number, seconds in enumerate(sent, 1))


@pytest.mark.parametrize(
    ("store", "kind"),
    [("file", "trio"), ("redis", "asyncio")],  # Threads: test_when_a_member_dies_the_others_get_its_quota.
    indirect=["store"],
)
def test_processes_get_no_more_than_the_quota_and_each_gets_a_part(store: str, kind: World) -> None:
    served(Group(processes=4, store=store, rate=RATE, seconds=1.0, world=kind), members=4)


def test_when_a_member_dies_the_others_get_its_quota(store: str) -> None:
    def kill(start: float, members: list[BaseProcess]) -> None:
        time.sleep(max(0.0, start + 0.3 - time.monotonic()))
        members[0].kill()

    group = Group(processes=3, store=store, rate=RATE, seconds=2.0, workers=20)
    # Without its quota, they would use two of three parts.
    report = served(group, members=2, act=kill, part=0.7)
    assert sorted(report.grants) == [1, 2]


@in_redis
def test_a_crowd_that_is_cancelled_together_stops_no_other_request(store: str) -> None:
    group = Group(processes=3, store=store, rate=RATE, seconds=2.0, world="asyncio", crowd=200, cancel_at=0.8)
    report = served(group, members=3)
    assert report.after(1.2).all


@in_a_file
def test_waiters_that_soon_give_up_stop_no_other(store: str) -> None:
    group = Group(processes=3, store=store, rate=RATE, seconds=2.0, world="asyncio", crowd=100, patience=0.3)
    report = served(group, members=3)
    assert report.after(1.0).all


@in_redis
def test_a_suspended_member_does_not_use_what_it_held_when_it_continues(store: str) -> None:
    def suspend(start: float, members: list[BaseProcess]) -> None:
        time.sleep(max(0.0, start + 0.5 - time.monotonic()))
        member = members[0].pid
        assert member is not None
        os.kill(member, signal.SIGSTOP)
        time.sleep(1.2)
        os.kill(member, signal.SIGCONT)

    served(Group(processes=3, store=store, rate=RATE, seconds=2.4, workers=20), members=3, act=suspend)


async def visit(port: int, patience: float, end: float) -> None:
    """Connect again and again, and disconnect without an answer after a while."""
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.wait_for(reader.read(), patience)
        except TimeoutError:
            pass
        finally:
            writer.close()


@in_a_file
def test_a_service_whose_clients_disconnect_keeps_to_its_quota_and_leaves_none_waiting(store: str) -> None:
    sent: list[float] = []
    start = time.monotonic()
    visits: Counter[str] = Counter()

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(time.monotonic() - start)
        return httpx.Response(200)

    bucket = TokenBucket(RATE, 1, burst=1, share="service", store=store)
    stack = stkai.StackBuilder([stkai.transports.limiter(bucket)])

    async def main() -> None:
        async with httpx.AsyncClient(transport=stack.build_async(httpx.MockTransport(answer))) as upstream:

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                """Call upstream for this client, unless it goes away first."""
                visits["accepted"] += 1
                call = asyncio.create_task(upstream.post("https://api.test/"))
                gone = asyncio.create_task(reader.read())
                try:
                    await asyncio.wait({call, gone}, return_when=asyncio.FIRST_COMPLETED)
                    call.cancel()
                    gone.cancel()
                    outcome, _ = await asyncio.gather(call, gone, return_exceptions=True)
                    visits["cancelled" if isinstance(outcome, asyncio.CancelledError) else "answered"] += 1
                finally:
                    writer.close()
                    visits["closed"] += 1

            async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                end = time.monotonic() + 1.5
                await asyncio.gather(*(visit(port, patience, end) for patience in [0.1] * 60 + [10.0] * 5))
                await world.World("asyncio").until(lambda: visits["closed"] == visits["accepted"])

    asyncio.run(main())
    assert_within_the_quota(sent)
    assert bucket.waiting == 0
    assert visits["accepted"] == visits["closed"] == visits["answered"] + visits["cancelled"]
    # A client may disconnect between the request and its answer.
    assert 1 < visits["answered"] <= len(sent) <= visits["accepted"]
    bucket.close()
    snapshot = FileStore(store.removeprefix("file://")).look("service")
    assert snapshot is not None
    books = snapshot.books
    assert books["held"] == 0
    assert books["leased"] == books["used"] + books["returned"] + books["expired"]
    assert books["used"] == len(sent)


def test_members_that_are_killed_lose_at_most_one_permit_each(tmp_path: Path) -> None:
    outcome = kill_members(8, tmp_path)
    assert (outcome.twice, outcome.restarts) == (0, 0)
    assert outcome.lost <= outcome.kills
    assert outcome.granted > outcome.kills


def test_no_error_reaches_a_caller_while_the_server_is_down(tmp_path: Path) -> None:
    if not installed("redis"):
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    with Server("redis", tmp_path / "server") as server:

        def restart(start: float, members: list[BaseProcess]) -> None:
            time.sleep(max(0.0, start + 0.5 - time.monotonic()))
            server.kill()
            time.sleep(0.8)
            server.start()

        report = run_group(Group(processes=3, store=server.url, rate=RATE, seconds=4.0), restart)
    assert report.errors == []
    assert sorted(report.grants) == [0, 1, 2]
    # A busy machine may lose the store once more.
    assert report.events["StoreLost"] >= report.events["StoreRestored"] >= 3
    assert len(report.all) <= 1.2 * RATE * report.all[-1] + 1


PRELOADED: dict[str, Any] = {}


def post(store: str, number: int) -> float:
    """Send one request through the client from before the fork, or through a new one of this process."""
    client = PRELOADED.get("client") or _client(store)
    client.post("https://api.test/")
    return time.monotonic()


def _client(store: str) -> httpx.Client:
    bucket = TokenBucket(10, 1, burst=1, share="forked", store=store)
    return httpx.Client(
        transport=TokenBucketTransport(httpx.MockTransport(lambda _: httpx.Response(200)), bucket)
    )


@pytest.mark.parametrize(("method", "store"), [("fork", "file"), ("forkserver", "redis")], indirect=["store"])
def test_forked_children_are_separate_members(
    method: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, start = _client(store), time.monotonic()
    client.post("https://api.test/")
    if method == "fork":
        monkeypatch.setitem(PRELOADED, "client", client)
    context: Any = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        sent = pool.map(partial(post, store), range(6), chunksize=1)
        pool.close()
        pool.join()  # Ended by a signal just before it waits for work, a worker under coverage would wait for ever.
    # No permit was granted twice: there is a gap of 0.1 s before each of the six.
    assert max(sent) - start >= 0.59
    client.close()


OTHER_PROGRAM = """
import sys, stkai, httpx
from stkai.transports import TokenBucketTransport
bucket = stkai.TokenBucket(20, 1, burst=1, share="disagreed", store=sys.argv[1])
client = httpx.Client(transport=TokenBucketTransport(httpx.MockTransport(lambda r: httpx.Response(200)), bucket))
client.post("https://api.test/")
"""


def test_the_quota_of_the_newest_member_applies(store: str) -> None:
    events: list[stkai.Event] = []
    bucket = TokenBucket(10, 1, burst=1, share="disagreed", store=store)
    stack = stkai.StackBuilder([stkai.transports.limiter(bucket)], listener=[events.append])
    with httpx.Client(transport=stack.build(httpx.MockTransport(lambda _: httpx.Response(200)))) as client:
        client.post("https://api.test/")
        with Forked([sys.executable, "-c", OTHER_PROGRAM, store]) as process:
            assert process.wait(60) == 0
        client.post("https://api.test/")
    found = [event for event in events if isinstance(event, stkai.QuotaDisagreement)]
    assert [(event.share, event.mine, event.theirs) for event in found] == [("disagreed", 10, 20)]


def test_a_deleted_state_file_is_shared_again_within_a_second(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    first = _client(f"file://{directory}")
    first.post("https://api.test/")
    for path in directory.iterdir():
        path.unlink()
    time.sleep(0.3)
    first.post("https://api.test/")
    newcomer = TokenBucket(10, 1, burst=1, share="forked", store=FileStore(directory))
    with httpx.Client(
        transport=TokenBucketTransport(httpx.MockTransport(lambda _: httpx.Response(200)), newcomer)
    ) as client:
        client.post("https://api.test/")
    assert newcomer.members == 2
    first.close()
