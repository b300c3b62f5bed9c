"""QuotaServer: an embedded server on loopback that behaves like StackSpot AI, and misbehaves on request."""

import asyncio
import socket
import threading
from concurrent.futures import Future
from typing import Final, Literal, Self

from .._checks import COUNT, SECONDS, check_choice, check_number
from .._clock import Clock, clock_or_system
from .._errors import ConfigurationError, missing_extra
from ._replies import Answer, Fault, RequestRecord
from ._service import API, TOKEN_PATH, Bucket, FixedWindow, RetryAfter, ServerQuota, Service, SlidingWindow

_KINDS: Final = {"fixed": FixedWindow, "sliding": SlidingWindow, "bucket": Bucket}


class QuotaServer:
    """One quota, a token endpoint, quick commands, agents and models, in a thread of this process.

        with QuotaServer(max_requests=10, time_window=1.0) as server:
            client.post(server.create_url(), json={"input_data": "hello"})

    Any number of clients in any number of processes may use it. It counts POSTs to quick commands, agents and models;
    polls and refused requests use no quota. OpenAI's SDK, and others with the same API, such as Mistral's, can chat at
    `/v1/chat/completions`, streamed or not; the model repeats the last message.

    Args:
        max_requests: the quota; None for no limit.
        time_window: seconds that the quota covers.
        kind: how it is counted: "fixed", a counter per window; "sliding", a log of the accepted requests; "bucket", a
            token bucket of ten requests.
        retry_after: a 429's header: "true", the seconds until a request would be accepted, rounded up; "date", that
            instant as an HTTP-date; a number, always that; None, no header.
        latency: seconds before each answer of the API, including refusals; or (low, high), uniform between them.
        auth_required: whether the API wants a token.
        client_id: the client that may get tokens.
        client_secret: its secret.
        token_lifetime: seconds for which a token is valid.
        polls_until_done: how many polls of an execution answer RUNNING before one answers COMPLETED.
        clock: the time for quota, tokens and dates; latency and faults take real time.
    """

    def __init__(
        self,
        max_requests: int | None = None,
        time_window: float = 1.0,
        *,
        kind: Literal["fixed", "sliding", "bucket"] = "fixed",
        retry_after: RetryAfter = "true",
        latency: float | tuple[float, float] = 0.0,
        auth_required: bool = True,
        client_id: str = "test-client",
        client_secret: str = "test-secret",  # noqa: S107
        token_lifetime: float = 1200,
        polls_until_done: int = 1,
        clock: Clock | None = None,
    ) -> None:
        if isinstance(retry_after, int | float):
            check_number("retry_after", retry_after, SECONDS)
        else:
            check_choice("retry_after, unless a number,", retry_after, "true", "date", None)
        check_choice("kind", kind, *_KINDS)
        low, high = latency if isinstance(latency, tuple) else (latency, latency)
        self._service = Service(
            quota=None if max_requests is None else _KINDS[kind](max_requests, time_window),
            retry_after=retry_after,
            latency=(check_number("latency", low, SECONDS), check_number("latency", high, SECONDS)),
            auth_required=auth_required,
            client_id=client_id,
            client_secret=client_secret,
            token_lifetime=check_number("token_lifetime", token_lifetime, SECONDS),
            polls_until_done=check_number("polls_until_done", polls_until_done, COUNT),
            clock=clock_or_system(clock),
        )
        self.client_id = client_id
        self.client_secret = client_secret
        self._port: int | None = None
        self._stop: Future[None] = Future()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Start serving; returns when requests are accepted. Does nothing if the server is already running.

        Raises:
            ConfigurationError: aiohttp is not installed.
        """
        if self._thread is None:
            try:
                from ._app import serve
            except ModuleNotFoundError as error:
                raise missing_extra("QuotaServer", "testing") from error
            listening = socket.create_server(("127.0.0.1", 0))
            self._port, self._stop = listening.getsockname()[1], Future()
            serving = serve(self._service, listening, self._stop)
            self._thread = threading.Thread(
                target=asyncio.run, args=(serving,), name="QuotaServer", daemon=True
            )
            self._thread.start()
        return self

    def close(self) -> None:
        """Stop serving, and abort requests in progress; returns when all sockets are closed."""
        if self._thread is not None:
            self._stop.set_result(None)
            self._thread.join()
            self._thread = self._port = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The origin, such as `http://127.0.0.1:49152`; only while the server runs."""
        if self._port is None:
            raise RuntimeError("the server is not running: use it as a context manager, or call start()")
        return f"http://127.0.0.1:{self._port}"

    @property
    def token_url(self) -> str:
        """Where tokens are issued."""
        return self.url + TOKEN_PATH

    @property
    def token_path(self) -> str:
        """The path of `token_url`, for faults and counts."""
        return TOKEN_PATH

    def create_url(self, slug: str = "demo") -> str:
        """Where an execution of a quick command is created: POST, counted."""
        return f"{self.url}{API}/quick-commands/create-execution/{slug}"

    def callback_url(self, execution_id: str) -> str:
        """Where an execution is polled: GET, not counted."""
        return f"{self.url}{API}/quick-commands/callback/{execution_id}"

    def chat_url(self, agent_id: str = "demo") -> str:
        """Where an agent is asked: POST `{"user_prompt": ..., "streaming": ...}`, counted."""
        return f"{self.url}{API}/agent/{agent_id}/chat"

    def env(self) -> dict[str, str]:
        """The environment variables that let a client find this server and get its tokens."""
        return {
            "STKAI_AUTH_CLIENT_ID": self.client_id,
            "STKAI_AUTH_CLIENT_SECRET": self.client_secret,
            "STKAI_AUTH_TOKEN_URL": self.token_url,
        }

    @property
    def quota(self) -> ServerQuota | None:
        """The quota; its `max_requests` may be changed while the server runs."""
        return self._service.quota

    def fail_with(self, *faults: int | Fault | None, path: str = API) -> None:
        """Let the next requests whose path starts with `path` fail, one each: with a status, or a fault.

        None lets one through. A status, an `Answer` and `Reset("start")` replace the service, which does not see the
        request; with the others, it handles (and counts) the request, and only the answer is affected.

        Raises:
            ConfigurationError: one of them is something else, such as a list of statuses.
        """
        self._service.faults += [(path, _checked(fault)) for fault in faults]

    @property
    def faults_left(self) -> int:
        """The number of queued faults that are still unused."""
        return len(self._service.faults)

    def revoke_tokens(self) -> None:
        """Refuse every token issued so far with 401."""
        self._service.tokens.clear()

    @property
    def requests(self) -> list[RequestRecord]:
        """The requests received so far, in the order of arrival."""
        return self._service.log.copy()

    def count(self, *, path: str = "/", method: str | None = None, status: int | None = None) -> int:
        """The number of requests whose path starts with `path`, optionally with this method and this status."""
        return sum(
            record.path.startswith(path)
            and method in (None, record.method)
            and status in (None, record.status)
            for record in self.requests
        )

    @property
    def token_requests(self) -> int:
        """The number of requests to the token endpoint."""
        return self.count(path=TOKEN_PATH)

    @property
    def connections(self) -> int:
        """The number of TCP connections on which requests arrived."""
        return len({record.connection for record in self.requests})

    def forget_requests(self) -> None:
        """Clear `requests`; all counts start again at 0."""
        self._service.log.clear()

    def __repr__(self) -> str:
        where = "not started" if self._port is None else self.url
        return f"<QuotaServer {where}, {len(self._service.log)} requests>"


def _checked(fault: object) -> Fault:
    """A fault as `fail_with` takes it: a status, a fault, or None for none."""
    if isinstance(fault, Fault):
        return fault
    if fault is None:
        return Fault()
    if isinstance(fault, int):
        return Answer(fault)
    raise ConfigurationError(
        f'a fault must be a status such as 503, a fault such as Reset("body"), or None, not {fault!r}; pass several as'
        " fail_with(503, 503)"
    )
