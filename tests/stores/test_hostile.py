"""Stores that answer nonsense, refuse, or belong to another user: a limiter goes on with its own part of the quota."""

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from stkai import AimdLimiter, Event, StackBuilder, StoreLost, StoreRestored, TokenBucket
from stkai.stores import Ask, FileStore, GroupRate, Lease, MemoryStore
from stkai.testing import FakeClock
from stkai.transports import limiter
from stkai.transports._limits.queue import Queue

from ..support.redis_servers import KINDS, Server, installed
from ..support.threads import wait_until
from .clients import Client, ask, patient_store


class Lying(MemoryStore):
    """A store whose answers are changed on the way."""

    def __init__(self, clock: FakeClock, change: Callable[[Lease], Any]) -> None:
        super().__init__(clock)
        self.change = change

    def lease(self, ask: Ask) -> Any:
        return self.change(super().lease(ask))


def field(name: str, value: Any) -> Any:
    return pytest.param(lambda lease: replace(lease, **{name: value}), id=f"{name}={value}")


def law(name: str, value: Any) -> Any:
    return pytest.param(
        lambda lease: replace(lease, law=lease.law._replace(**{name: value})), id=f"law.{name}={value}"
    )


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda _: None, id="nothing"),
        pytest.param(lambda _: "a lease", id="text"),
        *(field(name, math.nan) for name in ("id", "units", "queue", "again", "pause", "active", "members")),
        *(field(name, math.inf) for name in ("units", "queue", "again", "pause", "epoch")),
        *(field(name, "1") for name in ("ranges", "pause", "epoch", "quota")),
        *(field(name, None) for name in ("members", "epoch", "law", "ranges", "quota")),
        *(
            field("ranges", (each,))
            for each in (
                (0.0, 0.0, -5),
                (0.0, 0.0, 10**9),
                (0.0, 0.0, 1.5),
                (-1e9, 0.0, 1),
                (0.0, -1.0, 1),
                (0.0, math.inf, 1),
                (0.0, 1),
            )
        ),
        field("units", -1.0),
        field("members", 0),
        field("active", 0),
        law("rate", math.inf),
        law("rate", 0.0),
        law("age", math.nan),
        law("memory", 7),
    ],
)
def test_a_store_that_answers_nonsense_is_lost_and_no_caller_notices(change: Callable[[Lease], Any]) -> None:
    clock, events = FakeClock(), list[Event]()
    policy = AimdLimiter(10, 1.0, share="team", store=Lying(clock, change))
    builder = StackBuilder([limiter(policy)], listener=[events.append], clock=clock)
    transport = builder.build(httpx.MockTransport(lambda _: httpx.Response(200)))
    for _ in range(20):
        assert transport.handle_request(httpx.Request("POST", "http://quota.test/")).status_code == 200
    assert 1.0 <= clock.monotonic() <= 20.0
    (lost,) = [event for event in events if isinstance(event, StoreLost)]
    assert "the store" in lost.reason


@pytest.mark.parametrize(
    "change", [law("age", -1e6), law("memory", "[]"), field("active", 7), field("queue", -5.0)]
)
def test_a_store_may_be_a_little_imprecise(change: Callable[[Lease], Any]) -> None:
    clock, events = FakeClock(), list[Event]()
    policy = AimdLimiter(10, 1.0, share="team", store=Lying(clock, change))
    builder = StackBuilder([limiter(policy)], listener=[events.append], clock=clock)
    transport = builder.build(httpx.MockTransport(lambda _: httpx.Response(200)))
    for _ in range(5):
        transport.handle_request(httpx.Request("POST", "http://quota.test/"))
    assert not [event for event in events if isinstance(event, StoreLost)]


@pytest.fixture(params=KINDS)
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server with a password, `hush`, and a user `stkai` who may run no script."""
    if not installed(request.param):
        pytest.skip(f"{request.param}-server is not installed")
    with Server(request.param, tmp_path) as server:
        with server.client() as client:
            client.acl_setuser(
                "stkai", enabled=True, passwords=["+right"], keys=["stkai:*"], commands=["+get"]
            )
            client.config_set("requirepass", "hush")
        yield server


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("login", "why"),
    [
        ("", "AuthenticationError: Authentication required"),
        (":hunter2@", "AuthenticationError: "),
        ("stkai:hunter2@", "AuthenticationError: "),
        ("stkai:right@", "NoPermissionError: "),
    ],
)
def test_a_redis_that_refuses_access_is_a_lost_store_and_the_password_appears_nowhere(
    guarded: Server, login: str, why: str
) -> None:
    events = list[Event]()
    bucket = TokenBucket(1000, 1, share="t", store=f"redis://{login}127.0.0.1:{guarded.port}/0")
    transport = StackBuilder([limiter(bucket)], listener=[events.append]).build(
        httpx.MockTransport(lambda _: httpx.Response(200))
    )
    for _ in range(3):
        assert transport.handle_request(httpx.Request("POST", "http://quota.test/")).status_code == 200
    (lost,) = [event for event in events if isinstance(event, StoreLost)]
    assert not lost.was_reached
    assert lost.reason.startswith(why)
    assert "hunter2" not in f"{lost!r} {lost} {bucket!r}"


@pytest.mark.real_time
def test_a_redis_that_refuses_the_login_later_is_a_lost_store(guarded: Server) -> None:
    events = list[Event]()
    bucket = TokenBucket(
        20, 1, burst=1, share="t", store=patient_store(f"redis://:hush@127.0.0.1:{guarded.port}/0")
    )
    transport = StackBuilder([limiter(bucket)], listener=[events.append]).build(
        httpx.MockTransport(lambda _: httpx.Response(200))
    )
    assert transport.handle_request(httpx.Request("POST", "http://quota.test/")).status_code == 200
    with guarded.client(password="hush") as client:
        client.config_set("requirepass", "another")
        client.client_kill_filter(_type="normal", skipme=True)
    for _ in range(3):
        assert transport.handle_request(httpx.Request("POST", "http://quota.test/")).status_code == 200
    (lost,) = [event for event in events if isinstance(event, StoreLost)]
    assert lost.was_reached
    assert lost.reason.startswith("AuthenticationError: ")
    assert "hush" not in f"{lost!r} {lost} {bucket!r}"


def test_the_commands_that_the_documentation_allows_are_enough(server: Server) -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "sharing.md").read_text()
    (rule,) = [part for part in page.replace("\n", " ").split("`") if part.startswith("ACL SETUSER")]
    with server.client() as client:
        client.execute_command(*rule.split())
    store = patient_store(f"redis://stkai:secret@127.0.0.1:{server.port}/0")
    lease = store.lease(ask())
    assert store.amend(lease.epoch, GroupRate("team", 5.0, 1.0, "x", lease.law.version))
    one = Client(store, "b")
    units: dict[str, Any] = {"max_cost": 10.0, "cost_rate": 1.0, "age": -2.0}
    for spent, cost in ((0.0, 1.0), (1.0, 9.0), (10.0, 5.0)):  # The last has to wait for its units.
        assert one.lease(waiting=2, units_used=spent, costs=(cost,), **units).members == 2
    one.lease(0, leaving=True)
    assert store.look("team") is not None
    store.reset("team")
    store.close()


@pytest.mark.parametrize(
    "options", ["?protocol=2", "?protocol=3", "?protocol=2&decode_responses=1", "?decode_responses=1"]
)
def test_every_protocol_of_the_server_is_understood(server: Server, options: str) -> None:
    store = patient_store(server.url + options)
    epoch = store.lease(ask()).epoch
    version = store.lease(ask()).law.version
    assert store.amend(epoch, GroupRate("team", 2.0, 1.0, "é", version))
    assert store.lease(ask()).law.memory == "é"
    seen = store.look("team")
    assert seen is not None
    assert seen.members == 1
    store.close()


@pytest.mark.parametrize(
    "text", [b"", b"rubbish", b"\x81\xa6vacant\x90", b"\x80", b"\xc0", b"\x93\x01\x02\x03"]
)
def test_a_state_that_is_not_ours_starts_anew(server: Server, text: bytes) -> None:
    with server.client() as client:
        store = patient_store(client)
        for _ in range(2):
            store.lease(ask())
            client.set("stkai:{team}:v6:state", text)
            client.hset("stkai:{team}:v6:members", "a", text)
            lease = store.lease(ask())
            assert (lease.count, lease.rate, lease.void) == (1, 10.0, False)
        client.set("stkai:{team}:v6:state", text)
        assert store.look("team") is None


@pytest.mark.real_time
def test_a_store_whose_directory_is_replaced_again_and_again_is_still_shared(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    first, second = FileStore(directory), FileStore(directory)
    for _ in range(3):
        first.lease(ask())
        shutil.rmtree(directory)
        directory.mkdir(mode=0o700)
        wait_until(lambda: first.lease(ask("a")).members + second.lease(ask("b")).members == 4)


@pytest.mark.real_time
def test_a_killed_holder_of_the_lock_blocks_no_other_process(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    epoch = store.lease(ask()).epoch
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:

            def hold(*_: object) -> None:
                os.write(writing, b"x")
                time.sleep(30)

            FileStore(tmp_path)._change("team", hold)
        finally:
            os._exit(0)
    os.read(reading, 1)
    with pytest.raises(TimeoutError):
        store.lease(ask())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert store.lease(ask()).epoch == epoch
    os.close(reading)
    os.close(writing)


@pytest.mark.real_time
def test_a_fork_during_a_wait_leaves_child_and_parent_their_own_queue(tmp_path: Path) -> None:
    """The fork comes while another thread holds every lock of the limiter that it can hold."""
    limiters = [
        kind(1000, 1.0, share="team", store=FileStore(tmp_path)) for kind in (TokenBucket, AimdLimiter)
    ]
    transports = [
        StackBuilder([limiter(policy)], listener=[]).build(httpx.MockTransport(lambda _: httpx.Response(200)))
        for policy in limiters
    ]
    for transport in transports:
        transport.handle_request(httpx.Request("POST", "http://quota.test/"))
    forked, held = threading.Event(), threading.Event()

    def hold() -> None:
        with Queue.lock:
            held.set()
            forked.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    child = os.fork()
    if not child:
        signal.alarm(10)
        for transport in transports:
            transport.handle_request(httpx.Request("POST", "http://quota.test/"))
        os._exit(7)
    forked.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    for transport in transports:
        transport.handle_request(httpx.Request("POST", "http://quota.test/"))


@pytest.mark.no_cover
def test_a_store_that_fails_every_other_time_costs_no_call() -> None:
    clock, events = FakeClock(), list[Event]()
    calls = iter(range(10**6))

    def change(lease: Lease) -> Lease:
        if next(calls) % 2:
            raise redis.ResponseError("BUSY running a script")
        return lease

    bucket: Any = TokenBucket(10, 1.0, burst=1, share="team", store=Lying(clock, change))
    transport = StackBuilder([limiter(bucket)], listener=[events.append], clock=clock).build(
        httpx.MockTransport(lambda _: httpx.Response(200))
    )
    sent = 0
    while clock.monotonic() < 10:
        transport.handle_request(httpx.Request("POST", "http://quota.test/"))
        bucket._leased.client.work()
        sent += 1
    assert 60 <= sent <= 115
    lost, restored = (sum(isinstance(event, kind) for event in events) for kind in (StoreLost, StoreRestored))
    assert restored <= lost <= restored + 1
