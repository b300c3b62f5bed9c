"""RedisStore against real Redis and Valkey servers."""

import gc
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import redis
import redis.asyncio

from stkai import AimdLimiter, ConfigurationError, PerKey, TokenBucket
from stkai.stores import GroupRate, RedisStore, Refusal, Store, _redis, store_from
from stkai.stores._background_calls import MAX_CALLS
from stkai.transports import AsyncLimiterTransport

from ..support.listening import listening
from ..support.redis_servers import KINDS, Server, free_port, installed
from ..support.threads import together
from ..support.world import World
from .clients import Client, OnClock, ask, eventually, patient_store

INSTALLED = [kind for kind in KINDS if installed(kind)]


def test_two_stores_on_one_server_share_one_clock(server: Server) -> None:
    first, second = patient_store(server.url), store_from(server.url)
    assert isinstance(second, Store)
    one, other = Client(first), Client(second, "b")
    start = time.monotonic()
    leases = [one.lease(), other.lease(), one.lease()]
    elapsed = time.monotonic() - start
    assert [lease.count for lease in leases] == [1, 1, 1]
    assert [lease.members for lease in leases] == [1, 2, 2]
    assert max(0.0, 0.2 - elapsed) - 0.01 <= leases[2].ranges[0][0] <= 0.21
    first.close()
    second.close()


@pytest.mark.parametrize("decoded", [False, True])
def test_a_client_may_be_passed_and_stays_open(server: Server, decoded: bool) -> None:
    with server.client(decode_responses=decoded) as client:
        store = patient_store(client)
        epoch = store.lease(ask()).epoch
        assert store.amend(epoch, GroupRate("team", 2.0, 1.0, "é", epoch + 1))
        law = store.lease(ask()).law
        assert law.memory == "é"
        store.close()
        assert client.ping()


@pytest.mark.real_time
def test_a_client_without_a_timeout_does_not_wait_for_a_server_that_hangs(server: Server) -> None:
    with server.client(socket_timeout=None, socket_connect_timeout=None) as client:
        store = RedisStore(client, timeout=0.5)
        assert store.lease(ask()).count == 1
        server.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError, match="did not answer"):
                store.lease(ask())
            with pytest.raises(TimeoutError, match="earlier call"):
                store.lease(ask())
        finally:
            server.send_signal(signal.SIGCONT)
        eventually(lambda: store.lease(ask()).count == 1)


def test_a_script_that_the_server_has_forgotten_is_sent_again(server: Server) -> None:
    with server.client() as client:
        store = patient_store(client)
        store.lease(ask())
        client.script_flush()
        assert store.lease(ask("b")).members == 2


def test_a_lost_state_restarts_without_a_burst_and_above_all_earlier_epochs(server: Server) -> None:
    with server.client() as client:
        one = Client(patient_store(client), burst=10.0)
        epoch = one.lease(0, refused=Refusal(one.lease().epoch, 1.0)).epoch
        client.flushall()
        assert one.lease(2, queue=0.0).epoch > epoch
        assert one.wait() > 0


def test_a_lost_state_stands_still_until_the_leases_of_its_members_are_over(server: Server) -> None:
    with server.client() as client:
        one, other = Client(patient_store(client), queue=3.0), Client(patient_store(client), "b")
        one.lease()
        client.flushall()
        lease = one.lease()
        assert lease.void
        assert lease.ranges[0][0] == pytest.approx(3, abs=0.1)
        assert other.wait() > 3


@pytest.mark.parametrize(
    ("share", "prefix"),
    [
        ("team key", b"stkai:{team key}:"),
        ("a{b}c", b"stkai:{a%7Bb%7Dc}:"),
        ("a%7Bb%7Dc", b"stkai:{a%7Bb%7Dc}:"),
    ],
)
def test_keys_begin_with_the_name_and_expire(server: Server, share: str, prefix: bytes) -> None:
    with server.client() as client:
        patient_store(client).lease(ask(share=share))
        keys = client.keys()
        assert keys
        for key in keys:
            assert key.startswith(prefix)
            assert 86_400 < client.ttl(key) <= 90_100


def test_two_names_never_share_a_key(server: Server) -> None:
    with server.client() as client:
        store = patient_store(client)
        for share in ("a{b}", "a%7Bb%7D", "a", "A"):
            assert store.lease(ask(share=share)).members == 1


def test_looking_adds_no_member_and_a_reset_deletes_the_state(server: Server) -> None:
    with server.client() as client:
        store = patient_store(client)
        assert store.look("team") is None
        store.lease(ask(want=3, waiting=7))
        seen = store.look("team")
        assert seen is not None
        assert (seen.members, seen.waiting, seen.rate, seen.refused) == (1, 7, 10.0, None)
        assert seen.books == {"leased": 3, "used": 0, "returned": 0, "expired": 0, "held": 3}
        assert store.reset("team")
        assert store.look("team") is None
        assert not store.reset("team")
        assert not store.reset("never used")


@pytest.mark.parametrize("part", ["state", "members", "dues"])
def test_a_reset_deletes_what_is_no_state_of_a_share(server: Server, part: str) -> None:
    with server.client() as client:
        store = patient_store(client)
        client.rpush(f"stkai:{{team}}:v6:{part}", "set by hand")
        with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
            store.lease(ask())
        assert store.reset("team")
        assert store.lease(ask()).members == 1


@pytest.mark.parametrize("through", ["a client", "a URL"])
def test_members_of_version_2_are_noticed_and_do_not_share(server: Server, through: str) -> None:
    with server.client() as client:
        store = patient_store(client if through == "a client" else server.url)
        assert not store.has_older_members("team")
        seconds, microseconds = client.time()
        client.zadd("stkai:{team}:members", {"old": seconds + microseconds / 1e6})
        assert store.has_older_members("team")
        assert store.lease(ask()).members == 1


@pytest.mark.real_time
def test_shares_on_one_server_use_the_same_connections(server: Server) -> None:
    with server.client() as client:
        before = len(client.client_list())
        stores = [patient_store(server.url) for _ in range(50)]
        for number, store in enumerate(stores):
            store.lease(ask(share=f"share {number}"))
        assert len(client.client_list()) <= before + 1
        del store, stores
        gc.collect()
        eventually(lambda: len(client.client_list()) <= before)


@pytest.mark.real_time
@pytest.mark.parametrize("kind", [TokenBucket, AimdLimiter])
@pytest.mark.parametrize("is_closed", [False, True])
def test_an_unused_limiter_leaves_no_connection_to_the_garbage_collector(
    server: Server, kind: Any, is_closed: bool
) -> None:
    with server.client() as client:
        before = len(client.client_list())
        limiter = kind(10, 1, share="dropped", store=server.url)
        with limiter.permit():
            assert len(client.client_list()) > before
        if is_closed:
            limiter.close()
        gc.disable()
        try:
            del limiter
            eventually(lambda: len(client.client_list()) <= before)
        finally:
            gc.enable()


@pytest.mark.no_cover
def test_a_crowd_of_threads_leaves_few_connections_open(server: Server) -> None:
    with server.client() as client:
        before = len(client.client_list())
        store = patient_store(server.url)

        def look() -> None:
            for _ in range(20):
                store.look("x")

        together(*[look] * 40)
        eventually(lambda: len(client.client_list()) <= before + MAX_CALLS + 4)
        store.close()


def test_an_answer_to_nothing_is_not_taken_for_the_next_one(server: Server) -> None:
    store = patient_store(server.url)
    epoch = store.lease(ask()).epoch
    (connection,) = store._server._idle
    connection.send_command("PING")
    assert connection.can_read(20)
    assert store.lease(ask("b")).epoch == epoch
    assert store.lease(ask("c")).members == 3
    store.close()


@pytest.mark.real_time  # The server may need a moment to start.
@pytest.mark.parametrize("kind", INSTALLED)
def test_a_connection_that_the_server_has_closed_is_closed_at_once(tmp_path: Path, kind: str) -> None:
    with Server(kind, tmp_path / "closing") as server:
        store = patient_store(server.url)
        store.lease(ask())
        (connection,) = store._server._idle
        server.kill()
        with pytest.raises(redis.ConnectionError):
            store.lease(ask())
        assert connection._sock is None


@pytest.mark.parametrize("kind", INSTALLED)
def test_a_server_that_knows_no_hello_is_asked_at_once_when_connected(tmp_path: Path, kind: str) -> None:
    """As Redis 5; and from far away, each command before the first one takes time."""
    with Server(kind, tmp_path / "older", "--rename-command", "HELLO", "") as server:
        store = patient_store(server.url)
        store.lease(ask())
        store.close()
        with server.client() as client:
            client.config_resetstat()
            assert store.lease(ask("b")).members == 2
            sent = client.info("commandstats")
        assert not {"cmdstat_hello", "cmdstat_client", "cmdstat_ping", "cmdstat_select"} & set(sent)
        store.close()


def test_an_error_of_the_client_is_not_taken_for_a_missing_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> bool:
        raise IndexError("a fault of redis-py")

    store = patient_store(server.url)
    store.lease(ask())
    monkeypatch.setattr(store._server._idle[0], "can_read", fail)
    with pytest.raises(IndexError, match="redis-py"):
        store.lease(ask())
    assert store.lease(ask()).members == 1
    store.close()


def test_a_store_reconnects_any_number_of_times_without_losing_a_lease(server: Server) -> None:
    with server.client() as client:
        store = patient_store(f"{server.url}?max_connections=2")
        for _ in range(5):
            assert store.lease(ask()).count == 1
            client.client_kill_filter(_type="normal", skipme=True)
        store.close()


@pytest.mark.no_cover
def test_a_step_costs_the_same_for_any_number_of_members(server: Server) -> None:
    def commands() -> int:
        with server.client() as client:
            return sum(about["calls"] for about in client.info("commandstats").values())

    with server.client() as client:
        store = patient_store(client)
        counts = []
        for members in (1, 300):
            for number in range(members):
                store.lease(ask(f"member {number}"))
            clients = [Client(store, f"member {number}") for number in range(5)]
            before = commands()
            for each in clients:
                each.lease()
            counts.append(commands() - before)
    assert counts[1] <= counts[0] + 30  # Now and then, silent members are looked for.


@pytest.mark.no_cover
@pytest.mark.parametrize("shared_server", INSTALLED[:1], indirect=True)
def test_members_that_fell_silent_are_forgotten_a_few_at_a_time(server: Server) -> None:
    with server.client() as client:
        now = 1000.0
        store = patient_store(OnClock(client, lambda: now))
        for number in range(850):
            store.lease(ask(f"member {number}", 0))
        now += 11
        one = Client(store, "one")
        assert one.lease().members >= 800
        for _ in range(45):
            now += 0.01
            one.lease()
        assert one.lease().members == 1
        assert client.hlen("stkai:{team}:v6:members") == client.zcard("stkai:{team}:v6:dues") == 1


@pytest.mark.parametrize("key", ["state", "members", "dues"])
def test_whichever_key_the_server_evicts_no_member_from_before_counts(server: Server, key: str) -> None:
    with server.client() as client:
        now = 1000.0
        store = patient_store(OnClock(client, lambda: now))
        clients = [Client(store, name, max_cost=10.0, cost_rate=1.0) for name in "abc"]
        assert [each.lease(costs=(2.0,)).members for each in clients] == [1, 2, 3]
        client.delete(f"stkai:{{team}}:v6:{key}")
        now += 1
        lease = clients[0].lease(costs=(2.0,))
        assert (lease.members, lease.active) == (1, 1)
        now += 20
        lease = clients[1].lease(costs=(2.0,))
        assert (lease.members, lease.active) == (1, 1)
        assert lease.units_left == 6.0  # Two of ten were held until now.


SOON = 2.0
"""Seconds: many times the timeout of a call, and less than the calls here would take without one."""


@pytest.fixture
def slow_server() -> Iterator[str]:
    """A server that answers each command after two seconds, with an error."""
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        while connection.recv(65536):
            ended.wait(2.0)
            connection.sendall(b"-ERR not now\r\n")

    with listening(answer, ending=ended.set) as port:
        yield f"redis://127.0.0.1:{port}/0"


def patient(url: str) -> Any:
    """A client with redis-py's own retries and generous timeouts."""
    retry = redis.retry.Retry(redis.backoff.ConstantBackoff(2 * SOON), 5)
    return redis.Redis.from_url(url, retry=retry, socket_timeout=5, socket_connect_timeout=5)


@pytest.mark.real_time
@pytest.mark.parametrize("given", [str, patient])
def test_slow_answers_together_take_no_longer_than_the_timeout(slow_server: str, given: Any) -> None:
    store = RedisStore(given(slow_server))
    assert seconds_of(store) < SOON


@pytest.mark.real_time
def test_a_timeout_in_the_url_does_not_prolong_the_call(server: Server) -> None:
    store = RedisStore(f"{server.url}?socket_timeout={2 * SOON}")
    eventually(lambda: store.lease(ask()))  # The connection stays open.
    server.send_signal(signal.SIGSTOP)
    try:
        assert seconds_of(store) < SOON
    finally:
        server.send_signal(signal.SIGCONT)


@pytest.mark.real_time
@pytest.mark.parametrize("given", [str, patient])
def test_looking_up_the_host_takes_no_longer_than_the_timeout(
    given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> Any:
        time.sleep(2 * SOON)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert seconds_of(RedisStore(given("redis://redis.test:6379"))) < SOON


@pytest.mark.real_time
def test_the_retries_of_a_client_do_not_prolong_the_call() -> None:
    assert seconds_of(RedisStore(patient(f"redis://127.0.0.1:{free_port()}"))) < SOON


def seconds_of(store: RedisStore) -> float:
    """How long a call takes that fails."""
    start = time.monotonic()
    with pytest.raises((redis.RedisError, TimeoutError)):
        store.lease(ask())
    return time.monotonic() - start


def test_a_server_that_cannot_be_reached_is_no_error_before_the_first_lease() -> None:
    store = RedisStore(f"redis://user:secret@127.0.0.1:{free_port()}/0")
    with pytest.raises(redis.ConnectionError):
        store.lease(ask())
    assert "secret" not in repr(store)
    assert "127.0.0.1" in repr(store)


def test_a_client_may_raise_errors_of_its_own_package(server: Server) -> None:
    """As valkey-py does."""

    class NoScriptError(Exception): ...

    class Client(redis.Redis):
        def evalsha(self, *given: Any, **options: Any) -> Any:
            raise NoScriptError

    with Client(port=server.port) as client:
        assert RedisStore(client).look("team") is None


@pytest.mark.parametrize("given", [redis.asyncio.Redis(), object(), 7, None])
def test_a_client_that_does_not_fit_is_a_configuration_error(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="a synchronous redis-py client"):
        RedisStore(given)


@pytest.mark.parametrize("timeout", [0, -1, True, "1", float("nan")])
def test_a_timeout_is_more_than_0(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        RedisStore("redis://127.0.0.1", timeout=timeout)


@pytest.mark.parametrize(
    "url", ["redis://:hunter2@host:notaport/0", "redis://:hunter2/x@host", "redis://u:[hunter2@host/0"]
)
def test_a_url_that_cannot_be_read_is_a_configuration_error_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="redis://user") as caught:
        RedisStore(url)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=False)
    assert "hunter2" not in "".join(shown.format())
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_without_redis_py_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"stkai\[redis\]"):
        RedisStore("redis://127.0.0.1")


def test_without_its_script_a_store_is_a_configuration_error_and_not_a_server_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_redis, "files", lambda package: tmp_path)
    _redis._script.cache_clear()
    with pytest.raises(ConfigurationError, match="--collect-all stkai"):
        RedisStore(redis.Redis())


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("rediss://u:p@example.com/2", "example.com:6379"),
        ("unix:///run/redis.sock?db=1&password=p", "unix:///run/redis.sock"),
        ("redis://example.com:7000?password=p", "example.com:7000"),
        ("redis://example.com:7000", "example.com:7000"),
    ],
)
def test_the_place_is_shown_without_credentials(url: str, place: str) -> None:
    assert RedisStore(url).place == place


@pytest.mark.no_cover
async def test_a_hundred_shares_use_a_few_connections(event_loop: World, server: Server) -> None:
    with server.client() as client:
        before = client.info("stats")["total_connections_received"]
        layer = AsyncLimiterTransport(
            httpx.MockTransport(lambda _: httpx.Response(200)),
            PerKey(
                lambda request: request.url.path, lambda key: TokenBucket(1e4, 1, share=key, store=server.url)
            ),
        )
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(layer.handle_async_request, httpx.Request("GET", f"http://test/{number}"))
        made = client.info("stats")["total_connections_received"] - before
    assert made <= 2 * MAX_CALLS
