"""Runs commands on a Redis server, each within a time that covers everything."""

import threading
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakValueDictionary

from .._abandonable import Job, Worker
from .._clock import SystemClock
from .._errors import ConfigurationError, missing_extra
from .._forks import begin_in_each_process
from .._secrets import Secret

_MOST_IDLE: Final = 8

_clock = SystemClock()


class Server:
    """A Redis server, through a client of the user's, which may have retries and timeouts of its own.

    Args:
        client: a synchronous redis-py client.
        timeout: seconds for a whole call.

    Attributes:
        errors: the exceptions of redis-py.

    Raises:
        ConfigurationError: redis-py is not installed, or the client is async.
    """

    def __init__(self, client: Any, timeout: float) -> None:
        self.errors = _import_redis().exceptions
        asynchronous = any(".asyncio" in kind.__module__ for kind in type(client).__mro__)
        if asynchronous or not all(callable(getattr(client, name, None)) for name in ("evalsha", "eval")):
            raise ConfigurationError(
                "RedisStore takes a URL or a synchronous redis-py client (redis.Redis, redis.RedisCluster, or"
                f" the result of Sentinel.master_for), not {type(client).__module__}.{type(client).__qualname__}"
            )
        self.client, self._timeout = client, timeout
        begin_in_each_process(self, Server._begin)

    def _begin(self) -> None:
        """Begin anew in a forked child: its parent uses the connections, and has the threads."""
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self._stuck: Job | None = None

    def run(self, command: str, *words: Any) -> Any:
        """The server's answer to a command.

        Raises:
            redis.RedisError: the server cannot be reached, or refuses.
            TimeoutError: it took too long.
        """
        return self._in_time(lambda: getattr(self.client, command.lower())(*words), self._timeout)

    def close(self) -> None:
        """Do nothing: the client belongs to the user."""

    def _in_time(self, work: Callable[[], Any], seconds: float) -> Any:
        """The result of `work` in another thread, which cannot limit its time itself.

        While a call is stuck, further calls fail at once, so that threads do not pile up.
        """
        if self._stuck is not None and not self._stuck.is_done:
            raise TimeoutError("the server has not answered an earlier call yet")
        self._stuck = None
        job, worker = Job(work), Worker()
        worker.start(job)
        worker.release()
        if not job.wait(max(0.0, seconds)):
            self._stuck = job
            raise TimeoutError(f"the server did not answer within {seconds:.3g} s")
        return job.result()


class Connections(Server):
    """The connections of this process to a server. All stores with the same URL use the same ones.

    A command on an open connection runs in the caller's thread, under the timeout of the socket. Looking up the host,
    connecting and signing in have no common timeout, so they run in another thread. The client only makes connections.
    """

    def run(self, command: str, *words: Any) -> Any:
        until = _clock.monotonic() + self._timeout
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            try:
                return self._ask(connection, (command, *words))
            except self.errors.TimeoutError:
                raise
            except (self.errors.ConnectionError, OSError):
                pass  # The server closed it in the meantime.
        left = until - _clock.monotonic()
        return self._in_time(lambda: self._ask(self._connected(), (command, *words)), left)

    def _connected(self) -> Any:
        connection = self.client.connection_pool.make_connection()
        # Do not send the server the library's name and version: that takes two more round trips.
        connection.driver_info = connection.lib_name = connection.lib_version = None
        connection.connect()
        return connection

    def _ask(self, connection: Any, words: tuple[Any, ...]) -> Any:
        """Send a command and read the answer; keep the connection unless either fails."""
        is_intact = False
        try:
            connection.send_command(*words)
            answer = connection.read_response()
            is_intact = True
        except self.errors.ResponseError as error:
            is_intact = not isinstance(error, self.errors.ConnectionError)
            raise
        finally:
            with self._lock:
                keep = is_intact and len(self._idle) < _MOST_IDLE
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.disconnect()
        return answer

    def close(self) -> None:
        """Close the idle connections; the next command opens another."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()

    __del__ = close


_shared: "WeakValueDictionary[tuple[str, float], Connections]" = WeakValueDictionary()
_lock = threading.Lock()


def connections(url: Secret, timeout: float) -> Connections:
    """The connections of this process to the server at a URL.

    Raises:
        ConfigurationError: redis-py is not installed, or the URL is invalid.
    """
    redis = _import_redis()
    with _lock:
        found = _shared.get((url.reveal(), timeout))
        if found is None:
            found = Connections(_client(redis, url, timeout), timeout)
            _shared[url.reveal(), timeout] = found
        return found


def _client(redis: Any, url: Secret, timeout: float) -> Any:
    once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    try:
        return redis.Redis.from_url(
            url.reveal(), socket_timeout=timeout, socket_connect_timeout=timeout, retry=once
        )
    except ValueError:
        pass
    # Outside of the handler: redis-py's error may quote a password.
    raise ConfigurationError(
        "the store's URL is invalid; it must look like redis://user:password@host:6379/0"
    )


def _import_redis() -> Any:
    try:
        import redis
    except ImportError as error:
        raise missing_extra("sharing a quota through Redis", "redis") from error
    return redis
