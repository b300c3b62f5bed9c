"""RedisStore on a cluster, and behind Sentinel when the master fails."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.cluster
import redis.sentinel

from stkai.stores import RedisStore

from ..support.redis_servers import Server, installed
from .clients import ask, eventually, patient_store

ClusterNode: Any = redis.cluster.ClusterNode
Sentinel: Any = redis.sentinel.Sentinel

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(
        not installed("redis"), reason="redis-server is not installed: apt-get install redis-server"
    ),
]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        servers = [Server("redis", tmp_path / str(number), "--cluster-enabled", "yes") for number in range(3)]
        clients = []
        for server in servers:
            stack.enter_context(server)
            clients.append(stack.enter_context(server.client()))
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            first, last = number * 16384 // 3, (number + 1) * 16384 // 3 - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for server in servers[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, server.cluster_port)
        eventually(lambda: all("cluster_state:ok" in _info(client) for client in clients))
        yield servers


def _info(client: Any) -> str:
    found = client.execute_command("CLUSTER", "INFO")
    return found.decode() if isinstance(found, bytes) else str(found)


def test_shares_live_in_a_cluster_each_in_one_slot(cluster: list[Server]) -> None:
    nodes = [ClusterNode("127.0.0.1", server.port) for server in cluster]
    client = redis.RedisCluster(startup_nodes=nodes)
    first, second = patient_store(client), patient_store(client)
    for share in ("team", "other {x}", "a", "b", "c"):
        assert first.lease(ask(share=share)).members == 1
        assert second.lease(ask("b", share=share)).members == 2
        assert first.look(share) is not None
        assert not first.has_older_members(share)
    assert repr(RedisStore(client)) == "RedisStore('RedisCluster')"
    client.close()


def test_a_share_survives_a_slot_that_moves_to_another_node(cluster: list[Server]) -> None:
    client = redis.RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", server.port) for server in cluster])
    store = RedisStore(client, timeout=5)
    epoch = store.lease(ask()).epoch
    nodes: Any = client.nodes_manager
    slot = redis.crc.key_slot(b"team")
    source = next(server for server in cluster if server.port == nodes.get_node_from_slot(slot).port)
    target = next(server for server in cluster if server is not source)
    with source.client() as old, target.client() as new:
        mine, theirs = (found.execute_command("CLUSTER", "MYID") for found in (old, new))
        new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", mine)
        old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", theirs)
        assert store.lease(ask()).epoch == epoch
        keys = old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10)
        old.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        assert store.lease(ask("b")).members == 2  # The old node redirects the script to the new one.
        for node in (new, old):
            node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", theirs)
    lease = eventually(lambda: store.lease(ask("c")))
    assert (lease.epoch, lease.members) == (epoch, 3)
    client.close()


def test_a_share_survives_a_fail_over_of_sentinels(tmp_path: Path) -> None:
    with ExitStack() as stack:
        master = stack.enter_context(Server("redis", tmp_path / "master"))
        replica = Server("redis", tmp_path / "replica", "--replicaof", "127.0.0.1", str(master.port))
        stack.enter_context(replica)
        config = (
            f"sentinel monitor quota 127.0.0.1 {master.port} 1\nsentinel down-after-milliseconds quota 500\n"
            "sentinel failover-timeout quota 3000\n"
        )
        watch = stack.enter_context(Server("redis", tmp_path / "sentinel", sentinel=config))
        sentinel = Sentinel([("127.0.0.1", watch.port)], socket_timeout=0.25)
        with replica.client() as client:
            eventually(lambda: client.info("replication")["master_link_status"] == "up")
        eventually(lambda: sentinel.discover_slaves("quota"))
        for watcher in sentinel.sentinels:
            stack.callback(watcher.close)
        master_client = sentinel.master_for("quota", socket_timeout=0.25)
        stack.callback(master_client.close)
        store = patient_store(master_client)
        epoch = store.lease(ask()).epoch
        master.kill()
        lease = eventually(lambda: store.lease(ask("b")))
        assert lease.count == 1
        assert lease.epoch >= epoch
        assert sentinel.discover_master("quota")[1] == replica.port


def test_a_share_leaves_a_master_that_was_demoted_and_keeps_its_connections_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server("redis", tmp_path / "old") as old, Server("redis", tmp_path / "new") as new:
        master = old

        def lead_to_master(*_: Any, **__: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", master.port))]

        with old.client() as client, monkeypatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", lead_to_master)
            store = patient_store("redis://quota.test")
            assert store.lease(ask()).count == 1
            client.replicaof("127.0.0.1", str(new.port))
            master = new
            with pytest.raises(redis.ResponseError, match="read only replica"):
                store.lease(ask())
            assert store.lease(ask()).count == 1
        with new.client() as client:
            assert client.keys("stkai:*")
        store.close()
