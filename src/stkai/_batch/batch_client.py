"""Builds a batch's stack from the settings, sends its lines, and polls quick commands."""

import sys
from typing import Any, Final
from urllib.parse import quote

import anyio
import httpx

from .. import wires
from .._builder import StackBuilder, StackOptions
from .._client import AsyncHttpClient
from .._clock import SystemClock
from .._config import STKAI
from .._config.models import Settings
from .._errors import AuthenticationError, ConfigurationError, DeadlineExceededError, StkaiError
from .._families import alike
from .._standard import limiter_from
from .._wire import AsyncDefaultWire
from .._wire.proxies import ProxyMap
from ..costs import llm_tokens
from ..transports._auth.bearer import BearerAuth
from ..transports._bodies import json_of
from ..transports._limits.in_flight import InFlight
from ..transports._limits.limiter import Limiter
from ..transports._limits.quota_limiters import TokenBucket
from ..transports._options import OPTIONS, UNSET, RequestOptions
from ..transports._retry.policy import RETRY_ON_STATUS_CODES
from ..transports._retry_after import retry_after
from .options import Options
from .tracking import LineInFlight

if sys.platform != "win32":
    import resource

_READ_TIMEOUT: Final = 600.0  # Seconds that a batch waits for an answer; longer if `--deadline` is.
_EXECUTION_TIMEOUT: Final = _READ_TIMEOUT  # Seconds that an execution may take, without `--deadline`.
_OTHER_FILES: Final = 100  # Open files of a process besides its connections.

_FIRST_PAUSE: Final = 1.0
_MAX_PAUSE: Final = 5.0
_GROWTH: Final = 1.5
_MAX_RETRY_AFTER: Final = 60.0

COMPLETED: Final = "COMPLETED"
FAILURE: Final = "FAILURE"


class NoExecutionError(StkaiError):
    """A quick command was started, but the answer contains no execution id."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        super().__init__("the answer contains no execution id, so the execution cannot be polled")


class BatchClient:
    """Sends the requests of a batch through the stack that the settings describe."""

    def __init__(self, options: Options) -> None:
        self._options, self._clock = options, SystemClock()
        deadline = options.deadline
        read = max(_READ_TIMEOUT, deadline or 0.0)
        self.timeouts = {"connect": 30.0, "read": read, "write": read, "pool": None}
        """The timeouts of each attempt, in seconds, as httpx takes them."""
        # A batch waits for its permits as long as necessary.
        call = RequestOptions(deadline=UNSET if deadline is None else deadline, max_wait_time=None)
        self.extensions = {OPTIONS: call, "timeout": self.timeouts}  # Of each line's request.
        given: StackOptions = {"rate_limit": limits(options, STKAI.config)}
        if options.no_auth:
            given["auth"] = None
        settings = _settings(options)
        connections = min(options.max_in_flight, settings.http.max_connections or options.max_in_flight)
        allow_files(connections + _OTHER_FILES)
        # The same key in each resumed run, unlike a key of the retry policy.
        self.key_headers = ["Idempotency-Key", *filter(None, [settings.retry.idempotency_header])]
        stack = StackBuilder._made_by("stkai batch", given, settings, own_wire=True)  # noqa: SLF001
        signed = [layer for layer in stack.layers if layer.name == "auth"]
        for layer in signed:  # Fail early if the token would be sent to `--base-url` unencrypted.
            assert isinstance(layer.policy, BearerAuth)
            if layer.policy.origins is None and options.base_url is not None:
                layer.policy.require_private(httpx.URL(options.base_url))
        # aiohttp needs half the processor time, but has neither HTTP/2 nor SOCKS proxies.
        needs_httpx = settings.http.http2 or ProxyMap.of(settings.http).has_socks
        wire = AsyncDefaultWire(settings.http) if needs_httpx else wires.aiohttp(settings.http)
        self._client = AsyncHttpClient(stack.build_async(wire))
        self._unlimited = AsyncHttpClient(StackBuilder(signed).build_async(wire))

    async def send(self, line: LineInFlight, request: httpx.Request) -> httpx.Response:
        """Send a line's request, with retries and within the limits, and return the answer.

        The execution of a quick command is polled until it ends: the answer is the last callback, or the server's
        refusal to create the execution.
        """
        if self._options.quick_command is None:
            return await self._client.send(request)
        start, deadline = self._clock.monotonic(), self._options.deadline
        execution = line.execution
        if execution is None:
            created = await self._client.send(request)
            if created.status_code >= 300:
                return created
            execution = json_of(created)
            if not isinstance(execution, str) or not execution or not execution.isprintable():
                raise NoExecutionError(created)
            await line.created(execution)
        if deadline is None:  # Time spent waiting for a permit does not count.
            start, deadline = self._clock.monotonic(), _EXECUTION_TIMEOUT
        url = self._options.url_of_commands(f"callback/{quote(execution, safe='')}")
        with anyio.move_on_after(start + deadline - self._clock.monotonic()):
            return await self._poll(url)
        # It may have ended since the last poll, or while this process was stopped.
        with anyio.move_on_after(_MAX_PAUSE):
            ended, _ = await self._ask(url)
            if ended is not None:
                return ended
        raise DeadlineExceededError(
            f"the execution did not end within {deadline:g} s: to wait longer, pass --deadline SECONDS"
        )

    async def _poll(self, url: str) -> httpx.Response:
        """Poll until the execution ends; return the last callback. Polls need no permit; failed ones are repeated.

        So is a 404, for the first seconds: not every server behind a load balancer may know of a new execution.
        """
        pause = _FIRST_PAUSE
        while True:
            await self._clock.asleep(pause)
            ended, asked = await self._ask(url)
            if ended is not None and (ended.status_code != httpx.codes.NOT_FOUND or pause >= _MAX_PAUSE):
                return ended
            pause = max(min(pause * _GROWTH, _MAX_PAUSE), min(asked, _MAX_RETRY_AFTER))

    async def _ask(self, url: str) -> tuple[httpx.Response | None, float]:
        """The callback if the execution has ended, and the seconds for which a server in trouble asks to wait."""
        try:
            response = await self._unlimited.get(url)
        except AuthenticationError:
            raise
        except alike(httpx.TransportError, httpx.DecodingError):
            return None, 0.0
        if response.status_code in RETRY_ON_STATUS_CODES or response.status_code >= 500:
            return None, retry_after(response.headers, self._clock.utcnow()) or 0.0
        has_ended = response.status_code >= 300 or status_of(response) in {COMPLETED, FAILURE}
        return response if has_ended else None, 0.0

    async def aclose(self) -> None:
        await self._client.close()


def limits(options: Options, settings: Settings) -> Any:
    """The limiters of the settings and of `--rpm`, `--tpm` and `--in-flight`; without these, an adaptive one."""
    config, limiters = settings.rate_limit, list[Limiter]()
    if config.share is not None and not config.enabled:
        return UNSET  # The builder reports it as an error, since nothing would be shared.
    if config.enabled:
        limiters.append(limiter_from(config))
    if options.rpm is not None or options.tpm is not None:
        cost = None if options.tpm is None else llm_tokens()
        limiters.append(TokenBucket(options.rpm, 60.0, max_cost=options.tpm, cost=cost))
    if options.in_flight is not None:
        limiters.append(InFlight(options.in_flight))
    return limiters or "adaptive"


def _settings(options: Options) -> Settings:
    """The settings, with enough connections unless the user set them; no `retry_unknown` for `--unknown report`."""
    settings = STKAI.config
    chosen, most = settings.http.model_fields_set, options.max_in_flight
    http = {
        name: most
        for name in ("max_connections", "max_keepalive_connections")
        if name not in chosen and (getattr(settings.http, name) or most) < most
    }
    retry = {"retry_unknown": False} if options.unknown == "report" else {}
    return settings.model_copy(
        update={
            "http": settings.http.model_copy(update=http),
            "retry": settings.retry.model_copy(update=retry),
        }
    )


def allow_files(needed: int) -> None:
    """Raise this process's limit on open files, since each connection is one."""
    if sys.platform == "win32":
        return
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
    except (OSError, OverflowError, ValueError) as error:
        # On macOS, a process may not have as many as its own limit says.
        raise ConfigurationError(
            f"--max-in-flight needs up to {needed} open files, which the system does not allow ({error}): pass a"
            " smaller number, or raise the limit (ulimit -n)"
        ) from error


def status_of(response: httpx.Response) -> str:
    """The status in a callback, in upper case; empty if there is none."""
    content = json_of(response)
    progress = content.get("progress") if isinstance(content, dict) else None
    status = progress.get("status") if isinstance(progress, dict) else None
    return status.upper() if isinstance(status, str) else ""
