"""RedisStore against real Redis and Valkey servers."""

import signal
import sys
from typing import Any

import pytest
import redis
import redis.asyncio

from stkai import ConfigurationError
from stkai.stores import Ask, Known, Law, RedisStore, Refusal, Store
from stkai.stores._choose import store_from

from ..support.redis_servers import Server, free_port


def ask(member: str = "a", want: int = 1, **others: Any) -> Ask:
    fields: dict[str, Any] = {"share": "team", "rate": 10.0, "burst": 1.0, "started": 1.0, **others}
    return Ask(member=member, want=want, **fields)


def test_two_stores_on_one_server_share_one_clock(server: Server) -> None:
    first, second = RedisStore(server.url), store_from(server.url)
    assert isinstance(second, Store)
    leases = [first.lease(ask()), second.lease(ask("b")), first.lease(ask())]
    assert [lease.count for lease in leases] == [1, 1, 1]
    assert [lease.members for lease in leases] == [1, 2, 2]
    assert leases[2].wait == pytest.approx(0.2, abs=0.1)
    first.close()
    second.close()


@pytest.mark.parametrize("decoded", [False, True])
def test_a_client_may_be_passed_and_stays_open(server: Server, decoded: bool) -> None:
    with server.client(decode_responses=decoded) as client:
        store = RedisStore(client)
        epoch = store.lease(ask()).epoch
        assert store.amend(epoch, Law("team", 2.0, 1.0, "é", epoch + 1))
        law = store.lease(ask()).law
        assert law.memory == "é"
        store.close()
        assert client.ping()


@pytest.mark.real_time
def test_a_client_without_a_timeout_does_not_wait_for_a_server_that_hangs(server: Server) -> None:
    with server.client(socket_timeout=None, socket_connect_timeout=None) as client:
        store = RedisStore(client)
        assert store.lease(ask()).count == 1
        server.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError, match="did not answer"):
                store.lease(ask())
            with pytest.raises(TimeoutError, match="earlier call"):
                store.lease(ask())
        finally:
            server.send_signal(signal.SIGCONT)
        assert store._in_time is not None
        assert store._in_time._stuck is not None
        store._in_time._stuck.join(5)
        assert store.lease(ask()).count == 1


def test_a_script_that_the_server_has_forgotten_is_sent_again(server: Server) -> None:
    with server.client() as client:
        store = RedisStore(client)
        store.lease(ask())
        client.script_flush()
        assert store.lease(ask("b")).members == 2


def test_a_lost_state_restarts_without_a_burst_and_above_all_earlier_epochs(server: Server) -> None:
    with server.client() as client:
        store = RedisStore(client)
        epoch = store.lease(ask(burst=10.0)).epoch
        epoch = store.lease(ask(refused=Refusal(epoch, 1.0), burst=10.0)).epoch
        client.flushall()
        assert store.lease(ask(burst=10.0, want=2)).epoch > epoch
        assert store.lease(ask(burst=10.0)).wait > 0


def test_a_lost_state_is_restored_from_the_first_member_that_asks(server: Server) -> None:
    with server.client() as client:
        store = RedisStore(client)
        client.flushall()
        lease = store.lease(ask(known=Known(epoch=7, next=3.0, pause=2.0, members=4)))
        assert (lease.epoch, lease.members) == (7, 1)
        assert lease.wait == pytest.approx(3, abs=0.1)
        assert lease.pause == pytest.approx(2, abs=0.1)


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
        RedisStore(client).lease(ask(share=share))
        keys = client.keys()
        assert keys
        for key in keys:
            assert key.startswith(prefix)
            assert 86_400 < client.ttl(key) <= 90_100


def test_two_names_never_share_a_key(server: Server) -> None:
    with server.client() as client:
        store = RedisStore(client)
        for share in ("a{b}", "a%7Bb%7D", "a", "A"):
            assert store.lease(ask(share=share)).members == 1


def test_looking_adds_no_member_and_a_reset_deletes_the_state(server: Server) -> None:
    with server.client() as client:
        store = RedisStore(client)
        assert store.look("team") is None
        store.lease(ask(want=3, waiting=7))
        seen = store.look("team")
        assert seen is not None
        assert (seen.members, seen.waiting, seen.rate, seen.refused) == (1, 7, 10.0, None)
        store.reset("team")
        assert store.look("team") is None


def test_a_server_that_cannot_be_reached_is_no_error_before_the_first_lease() -> None:
    store = RedisStore(f"redis://user:secret@127.0.0.1:{free_port()}/0")
    with pytest.raises(redis.ConnectionError):
        store.lease(ask())
    assert "secret" not in repr(store)
    assert "127.0.0.1" in repr(store)


@pytest.mark.parametrize("given", [redis.asyncio.Redis(), object(), 7, None])
def test_a_client_that_does_not_fit_is_a_configuration_error(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="a synchronous redis-py client"):
        RedisStore(given)


@pytest.mark.parametrize("timeout", [0, -1, True, "1", float("nan")])
def test_a_timeout_is_more_than_0(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        RedisStore("redis://127.0.0.1", timeout=timeout)


def test_a_url_that_cannot_be_read_is_a_configuration_error_without_its_password() -> None:
    with pytest.raises(ConfigurationError, match="redis://user") as caught:
        RedisStore("redis://:hunter2@host:notaport/0")
    assert "hunter2" not in str(caught.value)


def test_without_redis_py_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"stkai\[redis\]"):
        RedisStore("redis://127.0.0.1")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("rediss://u:p@example.com/2", "example.com:6379"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("redis://example.com:7000", "example.com:7000"),
    ],
)
def test_the_place_is_shown_without_credentials(url: str, place: str) -> None:
    assert RedisStore(url).place == place
