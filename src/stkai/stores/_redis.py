"""A Redis store: several machines share a quota through one script, which the server runs on its own clock.

The time limit of a command covers everything: looking up the host, connecting, and the answer.
"""

import json
from collections import deque
from contextlib import suppress
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final
from urllib.parse import quote
from weakref import WeakValueDictionary

from .._checks import POSITIVE_SECONDS, check_number, safe_repr
from .._clock import SystemClock
from .._errors import ConfigurationError, missing_extra
from .._process import begin_in_each_process
from .._secrets import Secret, StaysInProcess, sealed
from ._background_calls import MAX_CALLS, TimeLimit
from ._protocol import Ask, GroupRate, Lease, Quota, Snapshot, check_share
from ._share import MEMBER_LIFETIME

SCHEMES: Final = ("redis", "rediss", "unix")

DEFAULT_TIMEOUT: Final = 0.25
"""Seconds for a call to a server, unless the argument or the settings say otherwise."""


class RedisStore(StaysInProcess):
    """Redis, Valkey, a cluster of either, or a Sentinel master; keys begin with `stkai:{NAME}:` and expire.

    Args:
        url_or_client: a URL (`redis://`, `rediss://` or `unix://`), or a synchronous client of redis-py or valkey-py: a
            `redis.Redis`, a `redis.RedisCluster`, or the result of `Sentinel.master_for`. Stores with the same URL use
            the same connections.
        timeout: seconds for a whole call: looking up the host, connecting and the answer. A client's own timeouts and
            retries may end it earlier, but cannot extend it.

    Raises:
        ConfigurationError: redis-py is not installed (for a URL), the URL is invalid, the client is async, or the
            program was frozen without stkai's data files.
    """

    def __init__(self, url_or_client: Any, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        url_or_client = sealed(url_or_client)  # Tracebacks show variables.
        self.timeout = float(check_number("timeout", timeout, POSITIVE_SECONDS))
        make = connections if isinstance(url_or_client, Secret) else Server
        self._server: Server = make(url_or_client, self.timeout)
        _script()  # Fail early: at a call, a missing file would pass for a server that cannot be reached.

    def lease(self, ask: Ask) -> Lease:
        """Record a member's report and lease it permits.

        Raises:
            redis.RedisError: the server cannot be reached, or returned an error.
            TimeoutError: the server did not answer in time.
        """
        line, memory, methods = self._run(ask.share, "lease", json.dumps(ask._asdict()))
        (
            number, units, void, queue, again, pause, epoch, active, members, rate, burst, version, age, *rest,
        ) = map(float, line.split())  # fmt: skip
        law = GroupRate(ask.share, rate, burst, _text(memory), int(version), age)
        parts = iter(rest[6:])
        return Lease(
            int(number), law, Quota._make([*rest[:5], _text(methods)]),
            tuple((first, gap, int(count)) for first, gap, count in zip(parts, parts, parts, strict=True)),
            units, bool(void), queue, again, pause, int(epoch), int(active), int(members), rest[5],
        )  # fmt: skip

    def amend(self, epoch: int, law: GroupRate) -> bool:
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

    def has_older_members(self, share: str) -> bool:
        """Whether members of version 2 use the share now; they keep a separate state."""
        members = _keys(share)[1].removesuffix(b"v6:members") + b"members"
        now, _ = self._server.run("TIME")
        return bool(self._server.run("ZCOUNT", members, int(now) - MEMBER_LIFETIME, "+inf"))

    def close(self) -> None:
        """Close the connections, unless you passed the client; the next lease opens them again."""
        self._server.close()

    @safe_repr
    def __repr__(self) -> str:
        return f"RedisStore({self.place!r})"

    @property
    def place(self) -> str:
        """The server's address, without credentials; for a cluster or a Sentinel, the class of the client."""
        client = self._server.client
        pool = getattr(client, "connection_pool", None)
        about = getattr(pool, "connection_kwargs", None) or {}
        if "path" in about:
            return f"unix://{about['path']}"
        if "host" in about:
            return f"{about['host']}:{about.get('port', 6379)}"
        return type(client).__name__  # A cluster, or a Sentinel's master.

    def _run(self, share: str, verb: str, *arguments: str) -> Any:
        source, digest = _script()
        given = (3, *_keys(share), verb, "", *arguments)  # By the server's own time.
        try:
            return self._server.run("EVALSHA", digest, *given)
        except Exception as error:
            if type(error).__name__ != "NoScriptError":  # Of redis-py, or of valkey-py.
                raise
            return self._server.run("EVAL", source, *given)


@cache
def _script() -> tuple[str, str]:
    """The script, and the digest under which a server caches it."""
    try:
        source = files(__package__).joinpath("step.lua").read_text("utf-8")
    except FileNotFoundError as error:
        raise ConfigurationError(
            "stkai/stores/step.lua is missing, which sharing a quota through Redis needs: freeze the program with"
            " stkai's data files, in PyInstaller with --collect-all stkai"
        ) from error
    return source, sha1(source.encode(), usedforsecurity=False).hexdigest()


@cache
def _keys(share: str) -> tuple[bytes, ...]:
    """The share's keys, in one hash slot; a brace in the name would end the hash tag."""
    name, kind = check_share(share), ""
    if "{" in name or "}" in name:
        name, kind = quote(name, safe=""), "encoded:"
    return tuple(f"stkai:{{{name}}}:{kind}{part}".encode() for part in ("v6:state", "v6:members", "v6:dues"))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class Server:
    """A Redis server, reached through the user's client, which may have its own retries and timeouts."""

    def __init__(self, client: Any, timeout: float) -> None:
        asynchronous = any(".asyncio" in kind.__module__ for kind in type(client).__mro__)
        if asynchronous or not all(callable(getattr(client, name, None)) for name in ("evalsha", "eval")):
            raise ConfigurationError(
                "RedisStore takes a URL or a synchronous redis-py client (redis.Redis, redis.RedisCluster, or"
                f" the result of Sentinel.master_for), not {type(client).__module__}.{type(client).__qualname__}"
            )
        self.client, self._limit = client, TimeLimit(timeout, "the server")
        begin_in_each_process(self, Server._begin)

    def _begin(self) -> None:
        """Start over in a forked child: its parent uses the connections."""
        self._idle = deque[Any]()

    def run(self, command: str, *words: Any) -> Any:
        """The server's answer to a command, if it arrives in time."""
        return self._limit.run(lambda: getattr(self.client, command.lower())(*words))

    def close(self) -> None:
        """Do nothing: the client belongs to the user."""


class Connections(Server):
    """This process's connections to a server, shared by all stores with the same URL.

    A command on an open connection runs in the caller's thread, under the socket's timeout. Looking up the host,
    connecting and authenticating have no common timeout, so they run in another thread. The client only connects.
    """

    def __init__(self, client: Any, timeout: float) -> None:
        self.errors = _import_redis().exceptions
        super().__init__(client, timeout)

    def run(self, command: str, *words: Any) -> Any:
        until = SystemClock.monotonic() + self._limit.seconds
        connection = self._idle_one()
        with suppress(self.errors.ConnectionError, OSError):  # The server closed it in the meantime.
            if connection is not None:
                return self._ask(connection, (command, *words), was_idle=True)
        left = until - SystemClock.monotonic()
        return self._limit.run(lambda: self._ask(self._connected(), (command, *words)), left)

    def _idle_one(self) -> Any | None:
        with suppress(IndexError):
            return self._idle.pop()
        return None

    def _connected(self) -> Any:
        pool = self.client.connection_pool
        # Not `make_connection`: the pool has a maximum number of connections, and these are never returned to it.
        connection = pool.connection_class(**pool.connection_kwargs)
        # Sending the library's name and version would take two more round trips.
        connection.driver_info = connection.lib_name = connection.lib_version = None
        connection.connect()
        return connection

    def _ask(self, connection: Any, words: tuple[Any, ...], *, was_idle: bool = False) -> Any:
        """Send a command and read the answer; keep the connection unless either fails.

        After a failure, close all connections: they lead to the same server, which may be a demoted master, while its
        name already resolves to the new one.
        """
        try:
            if was_idle and connection.can_read():  # It would be taken for the answer.
                raise self.errors.ConnectionError
            connection.send_command(*words)
            answer = connection.read_response()
        except self.errors.NoScriptError:
            self._keep(connection)
            raise
        except BaseException:
            connection.disconnect()
            self.close()
            raise
        self._keep(connection)
        return answer

    def _keep(self, connection: Any) -> None:
        if len(self._idle) < MAX_CALLS:
            self._idle.append(connection)
        else:
            connection.disconnect()

    def close(self) -> None:
        """Close the idle connections; the next command opens another."""
        while (connection := self._idle_one()) is not None:
            connection.disconnect()

    __del__ = close


_shared: Final["WeakValueDictionary[tuple[str, float], Connections]"] = WeakValueDictionary()


def connections(url: Secret, timeout: float) -> Connections:
    """This process's connections to the server at `url`."""
    redis, client = _import_redis(), None
    if (found := _shared.get((url.reveal(), timeout))) is not None:
        return found
    once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    # RESP2 needs no HELLO, which takes a round trip and which Redis 5 does not support.
    options = {"protocol": 2, "socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": once}
    with suppress(ValueError):
        client = redis.Redis.from_url(url.reveal(), **options)
    if client is None:  # Outside the handler: redis-py's error may contain a password.
        raise ConfigurationError(
            "the store's URL is invalid; it must look like redis://user:password@host:6379/0"
        )
    given = client.connection_pool.connection_kwargs
    given["socket_timeout"] = min(given["socket_timeout"], timeout)  # A URL's own options replace these.
    return _shared.setdefault((url.reveal(), timeout), Connections(client, timeout))


def _import_redis() -> Any:
    try:
        import redis  # noqa: PLC0415 - optional
    except ImportError as error:
        raise missing_extra("sharing a quota through Redis", "redis") from error
    return redis
