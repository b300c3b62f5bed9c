"""A quota shared by several machines through Redis or Valkey: one script, which the server runs on its own clock."""

import json
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from .._checks import SOME_SECONDS, check_number, even_half_made
from .._secrets import Secret, sealed
from ._connections import Server, connections
from ._protocol import Ask, Law, Lease, Quota, Snapshot, check_share

SCHEMES = ("redis", "rediss", "unix")


class RedisStore:
    """Redis, Valkey, a cluster of either, or a Sentinel master; keys begin with `stkai:{NAME}:` and expire.

    Args:
        url_or_client: a URL (`redis://`, `rediss://` or `unix://`), or a synchronous redis-py client: a
            `redis.Redis`, a `redis.RedisCluster`, or the result of `Sentinel.master_for`. Stores with the same URL use
            the same connections.
        timeout: seconds for a whole call: looking up the host, connecting and the answer. A client's own timeouts and
            retries may shorten it, but do not prolong it.

    Raises:
        ConfigurationError: redis-py is not installed, the URL is invalid, or the client is async.
    """

    def __init__(self, url_or_client: Any, *, timeout: float = 0.25) -> None:
        url_or_client = sealed(url_or_client)  # Tracebacks show variables.
        self.timeout = float(check_number("timeout", timeout, SOME_SECONDS))
        make = connections if isinstance(url_or_client, Secret) else Server
        self._server: Server = make(url_or_client, self.timeout)

    def lease(self, ask: Ask) -> Lease:
        """Take a member's report and lease it permits.

        Raises:
            redis.RedisError: the server cannot be reached, or refuses.
            TimeoutError: it did not answer in time.
        """
        line, memory, methods = self._run(ask.share, "lease", json.dumps(ask._asdict()))
        (
            number, units, void, queue, again, pause, epoch, active, members, rate, burst, version, age, *rest,
        ) = map(float, line.split())  # fmt: skip
        law = Law(ask.share, rate, burst, _text(memory), int(version), age)
        parts = iter(rest[5:])
        return Lease(
            int(number), law, Quota._make([*rest[:5], _text(methods)]),
            tuple((first, gap, int(count)) for first, gap, count in zip(parts, parts, parts, strict=True)),
            units, bool(void), queue, again, pause, int(epoch), int(active), int(members),
        )  # fmt: skip

    def amend(self, epoch: int, law: Law) -> bool:
        """Replace the adaptive state of version `law.version` with a new one."""
        return bool(self._run(law.share, "amend", json.dumps({"epoch": epoch, **law._asdict()})))

    def look(self, share: str) -> Snapshot | None:
        """A share's state for display; None if it was not used recently."""
        found = self._run(share, "look")
        if not found:
            return None
        seen = json.loads(found)
        return Snapshot(**seen | {"quota": Quota(**seen["quota"]), "epoch": int(seen["epoch"])})

    def reset(self, share: str) -> bool:
        """Delete the state of a share; active members start over. Returns whether there was one."""
        return bool(self._run(share, "reset"))

    def close(self) -> None:
        """Close the connections, unless you passed the client; the next lease opens them again."""
        self._server.close()

    @even_half_made
    def __repr__(self) -> str:
        return f"RedisStore({self.place!r})"

    @property
    def place(self) -> str:
        """The server's address, without user and password."""
        client = self._server.client
        pool = getattr(client, "connection_pool", None)
        about = getattr(pool, "connection_kwargs", None) or {}
        if "path" in about:
            return f"unix://{about['path']}"
        service = getattr(pool, "service_name", None)
        if service is not None:
            return f"sentinel {service}"
        if "host" in about:
            return f"{about['host']}:{about.get('port', 6379)}"
        nodes = client.get_nodes() if hasattr(client, "get_nodes") else ()  # Of a cluster.
        return ",".join(sorted(f"{node.host}:{node.port}" for node in nodes)[:3]) or type(client).__name__

    def _run(self, share: str, verb: str, *arguments: str) -> Any:
        source, digest = _script()
        given = (3, *_keys(share), verb, self._instant(), *arguments)
        try:
            return self._server.run("EVALSHA", digest, *given)
        except self._server.errors.NoScriptError:
            return self._server.run("EVAL", source, *given)

    def _instant(self) -> str:
        """The time of the step; empty for the server's own time."""
        return ""


@cache
def _script() -> tuple[str, str]:
    """The script, and its digest, by which a server finds it."""
    source = files(__package__).joinpath("step.lua").read_text("utf-8")
    return source, sha1(source.encode(), usedforsecurity=False).hexdigest()


@cache
def _keys(share: str) -> tuple[bytes, ...]:
    """The share's keys, in one hash slot; a brace in the name would end the hashed part."""
    name, kind = check_share(share), ""
    if "{" in name or "}" in name:
        name, kind = quote(name, safe=""), "encoded:"
    return tuple(f"stkai:{{{name}}}:{kind}{part}".encode() for part in ("v4:state", "v4:members", "v4:dues"))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
