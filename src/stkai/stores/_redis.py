"""A quota shared by several machines through Redis or Valkey: one script, which the server runs on its own clock."""

import weakref
from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from .._errors import ConfigurationError
from ._in_time import InTime
from ._place import check_share
from ._protocol import Ask, Law, Lease, Snapshot

SCHEMES = ("redis", "rediss", "unix")

MISSING = 'sharing a quota through Redis needs redis-py: pip install "stkai[redis]"'


class RedisStore:
    """Redis, Valkey, a cluster of either, or a Sentinel master; keys begin with `stkai:{NAME}:` and expire.

    Args:
        url_or_client: a URL (`redis://`, `rediss://` or `unix://`), or a synchronous redis-py client: a
            `redis.Redis`, a `redis.RedisCluster`, or the result of `Sentinel.master_for`. It keeps its own timeouts.
        timeout: seconds for connecting and for each answer; for the whole call if the client has no timeout.

    Raises:
        ConfigurationError: redis-py is not installed, the URL is invalid, or the client is async.
    """

    def __init__(self, url_or_client: Any, *, timeout: float = 0.25) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise ConfigurationError(f"timeout must be a positive number of seconds, not {timeout!r}")
        self.timeout = float(timeout)
        self._owns = isinstance(url_or_client, str)
        self._client = _connect(url_or_client, self.timeout) if self._owns else _checked(url_or_client)
        if self._owns:
            weakref.finalize(self, self._client.close)
        self._in_time = None if self._owns or _has_timeout(self._client) else InTime(self.timeout)

    def lease(self, ask: Ask) -> Lease:
        """Take permits.

        Raises:
            redis.RedisError: the server cannot be reached, or refuses.
        """
        refused = (-1, 0.0) if ask.refused is None else ask.refused
        known = (-1, 0.0, 0.0, 0) if ask.known is None else ask.known
        numbers = (
            ask.rate, ask.burst, ask.started, ask.want, ask.waiting, ask.settle, ask.max_cost or 0.0, ask.cost_rate,
            *refused, *known,
        )  # fmt: skip
        line, memory = self._run(
            ask.share, "lease", ask.member, _words(numbers), _words(ask.costs), _words(ask.back)
        )
        count, wait, gap, pause, rate, epoch, members, quota, burst, depth, version, age, ahead = map(
            float, line.split()
        )
        law = Law(ask.share, rate, depth, _text(memory), int(version), age)
        return Lease(int(count), wait, gap, pause, rate, int(epoch), int(members), law, quota, burst, ahead)

    def amend(self, epoch: int, law: Law) -> bool:
        """Replace the adaptive state of version `law.version` with a new one."""
        numbers = _words((epoch, law.version, law.rate, law.burst))
        return bool(self._run(law.share, "amend", "", numbers, law.memory, ""))

    def look(self, share: str) -> Snapshot | None:
        """A share's state for display; None if it was not used recently."""
        found = self._run(share, "look", "", "", "", "")
        if not found:
            return None
        members, rate, quota, burst, used, waiting, queue, pause, refused, epoch = map(
            float, found[0].split()
        )
        last = refused if refused >= 0 else None
        return Snapshot(int(members), rate, quota, burst, used, int(waiting), queue, pause, last, int(epoch))

    def reset(self, share: str) -> None:
        """Delete the state of a share; active members start over."""
        self._run(share, "reset", "", "", "", "")

    def close(self) -> None:
        """Close the connections, unless you passed the client; the next lease opens them again."""
        if self._owns:
            self._client.close()

    def __repr__(self) -> str:
        return f"RedisStore({self.place!r})"

    @property
    def place(self) -> str:
        """The server's address, without user and password."""
        pool = getattr(self._client, "connection_pool", None)
        about = getattr(pool, "connection_kwargs", None) or {}
        if "path" in about:
            return f"unix://{about['path']}"
        service = getattr(pool, "service_name", None)
        if service is not None:
            return f"sentinel {service}"
        if "host" in about:
            return f"{about['host']}:{about.get('port', 6379)}"
        nodes = [f"{node.host}:{node.port}" for node in _nodes(self._client)]
        return ",".join(sorted(nodes)[:3]) or type(self._client).__name__

    def _run(self, share: str, verb: str, *arguments: str) -> Any:
        from redis.exceptions import NoScriptError

        source, digest = _script()
        keys = _keys(share)
        given = (verb, self._instant(), *arguments)

        def work() -> Any:
            try:
                return self._client.evalsha(digest, len(keys), *keys, *given)
            except NoScriptError:
                return self._client.eval(source, len(keys), *keys, *given)

        return work() if self._in_time is None else self._in_time.call(work)

    def _instant(self) -> str:
        """The time of the step; empty for the server's own time."""
        return ""


def _connect(url: str, timeout: float) -> Any:
    redis = _import()
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        )
    except ValueError as error:
        message = "the store's URL is invalid; it must look like redis://user:password@host:6379/0"
        raise ConfigurationError(message) from error


def _checked(client: Any) -> Any:
    _import()
    asynchronous = any(".asyncio" in kind.__module__ for kind in type(client).__mro__)
    if asynchronous or not all(callable(getattr(client, name, None)) for name in ("evalsha", "eval")):
        raise ConfigurationError(
            "RedisStore takes a URL or a synchronous redis-py client (redis.Redis, redis.RedisCluster, or"
            f" the result of Sentinel.master_for), not {type(client).__module__}.{type(client).__qualname__}"
        )
    return client


def _has_timeout(client: Any) -> bool:
    pool = getattr(client, "connection_pool", None) or getattr(client, "nodes_manager", None)
    about = getattr(pool, "connection_kwargs", None) or {}
    return about.get("socket_timeout") is not None


def _import() -> Any:
    try:
        import redis
        import redis.backoff
        import redis.retry
    except ImportError as error:
        raise ConfigurationError(MISSING) from error
    return redis


def _nodes(client: Any) -> Sequence[Any]:
    get = getattr(client, "get_nodes", None)
    return get() if callable(get) else ()


@cache
def _script() -> tuple[str, str]:
    """The script, and the digest by which a server knows it."""
    source = files(__package__).joinpath("tickets.lua").read_text("utf-8")
    return source, sha1(source.encode(), usedforsecurity=False).hexdigest()


@cache
def _keys(share: str) -> tuple[bytes, bytes, bytes]:
    """Keys in one hash slot; a brace in the name would end the hashed part."""
    name, kind = check_share(share), ""
    if "{" in name or "}" in name:
        name, kind = quote(name, safe=""), "encoded:"
    return tuple(f"stkai:{{{name}}}:{kind}{part}".encode() for part in ("state", "members", "waiting"))  # type: ignore[return-value]


def _words(numbers: Sequence[float]) -> str:
    return " ".join(map(repr, numbers))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
