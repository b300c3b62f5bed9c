"""The stack of a batch: the one of the settings, with the journal inside all other layers, right before the wire."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Self

import httpx

from .._builder import StackBuilder
from .._client import AsyncHttpClient
from .._config.models import Settings
from .._config.stkai import STKAI
from .._errors import ConfigurationError
from .._families import alike
from .._standard import Parts, limiter_from
from ..costs import llm_tokens
from ..transports._auth.bearer import BearerAuth, ExposedTokenError
from ..transports._base import LayerBase
from ..transports._call import OPTIONS, Attempt
from ..transports._layer import Layer
from ..transports._limits.in_flight import InFlight
from ..transports._limits.limiter import Limiter
from ..transports._limits.token_bucket import TokenBucket
from ..transports._operations import Flow, Run
from ..transports._options import UNSET, RequestOptions
from ..transports._retry.policy import NOT_SENT
from .append_file import GroupCommit
from .errors import DroppedError, UsageError, WriteError
from .journal import Journal
from .options import Options

LINE: Final = "stkai.batch.line"
"""The request extension that holds the line."""

_READ: Final = 600.0
"""Seconds that a batch waits for an answer; longer if `--deadline` is."""

_REFUSED: Final = frozenset({401, 408, 429, 503})


class LineInFlight:
    """A line that is being sent.

    Attributes:
        number: the line's number.
        custom_id: as JSON.
        execution: the id of the execution that it created, once known.
        may_drop: whether it can be dropped when the run ends: it was not sent, or was refused, or can be polled later.
    """

    __slots__ = ("_drop", "custom_id", "execution", "may_drop", "number")

    def __init__(self, number: int, custom_id: str, execution: str | None = None) -> None:
        self.number, self.custom_id, self.execution = number, custom_id, execution
        self.may_drop = True
        self._drop: Callable[[], object] | None = None

    def started(self, drop: Callable[[], object]) -> None:
        """Its task has started; `drop` ends the task."""
        self._drop = drop

    def drop(self) -> None:
        """End its task, if the line may be dropped."""
        if self.may_drop and self._drop is not None:
            self._drop()


def line_of(request: httpx.Request) -> LineInFlight | None:
    """The line that a request is for, if any."""
    line: LineInFlight | None = request.extensions.get(LINE)
    return line


class BatchClient:
    """Sends requests through the stack of the settings, and records in the journal which lines are about to be sent.

    Attributes:
        is_ending: nothing more may be sent.
        timeouts: of each attempt, in seconds, as httpx takes them.

    Raises:
        UsageError: the settings are invalid, or do not mention authentication.
    """

    def __init__(self, options: Options) -> None:
        self.is_ending = False
        deadline = options.deadline
        read = max(_READ, deadline or 0.0)
        self.timeouts = {"connect": 30.0, "read": read, "write": read, "pool": None}
        # A batch waits for its permits as long as it takes.
        self._call = RequestOptions(deadline=UNSET if deadline is None else deadline, max_wait_time=None)
        self._journal: Journal | None = None
        self._commit: GroupCommit | None = None
        self._needs_commit = options.sync == "always"
        try:
            parts = Parts.choose(
                _settings(options),
                auth=None if options.no_auth else "auto",
                rate_limit=limits(options, STKAI.config),
                own_wire=True,
            )
            _check_base(options, parts)
            wire = parts.make_async_wire()
        except (ConfigurationError, ExposedTokenError) as error:
            hint = (
                ""
                if options.no_auth
                else "\n  - on the command line: --no-auth, for an API that needs no token"
            )
            raise UsageError(f"{error}{hint}") from error
        journal = Layer("journal", self._flow)
        self._client = AsyncHttpClient(StackBuilder([*parts.layers, journal]).build_async(wire))
        signed = [layer for layer in parts.layers if layer.name == "auth"]
        self._unlimited = AsyncHttpClient(StackBuilder([*signed, journal]).build_async(wire))

    def record_in(self, journal: Journal) -> None:
        """Use this journal from now on."""
        self._journal = journal
        self._commit = GroupCommit(journal.file) if self._needs_commit else None

    def extensions(self, line: LineInFlight) -> dict[str, Any]:
        """The extensions of a line's request."""
        return {OPTIONS: self._call, "timeout": self.timeouts, LINE: line}

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request with retries, within the limits."""
        return await self._client.send(request)

    async def poll(self, request: httpx.Request) -> httpx.Response:
        """Send a request once, outside the limits."""
        return await self._unlimited.send(request)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def created(self, line: LineInFlight, execution: str) -> None:
        """The line has created an execution."""
        line.execution = execution
        if self._journal is not None:
            self._journal.execution(line.number, execution)
            await self._committed()
        self._may_drop(line)

    # The layer

    def _flow(self, layer: LayerBase, request: httpx.Request, attempt: Attempt) -> Flow:
        line = line_of(request)
        if line is None:
            return (yield from layer.forward(request, attempt))
        yield Run(_only_async, lambda _: self._about_to_send(line))
        try:
            response = yield from layer.forward(request, attempt)
        except alike(*NOT_SENT):
            self._not_sent(line)
            raise
        if response.status_code in _REFUSED:
            self._not_sent(line)
        return response

    async def _about_to_send(self, line: LineInFlight) -> None:
        if self.is_ending:
            raise DroppedError
        if self._journal is not None:
            self._journal.sent(line.number)
        line.may_drop = False
        await self._committed()

    async def _committed(self) -> None:
        """Return once the records would survive a power failure, if `--sync always` asks for that."""
        if self._commit is not None:
            await self._commit()

    def _not_sent(self, line: LineInFlight) -> None:
        """The attempt proves that nothing ran."""
        if self._journal is not None:
            # If that fails, the line counts as sent, which is safe, and the next one is not sent.
            with suppress(WriteError):
                self._journal.not_sent(line.number)
        self._may_drop(line)

    def _may_drop(self, line: LineInFlight) -> None:
        line.may_drop = True
        if self.is_ending:
            line.drop()


def _only_async(_: float) -> None:
    raise ConfigurationError("the journal of a batch needs an async stack: use build_async()")


def limits(options: Options, settings: Settings) -> Any:
    """The limiters of a batch: that of the settings, and those of `--rpm`, `--tpm` and `--in-flight`.

    Without any of these, a batch adapts to what the server accepts.
    """
    config, limiters = settings.rate_limit, list[Limiter]()
    if config.enabled:
        limiters.append(limiter_from(config))
    if options.rpm is not None or options.tpm is not None:
        cost = None if options.tpm is None else llm_tokens()
        limiters.append(TokenBucket(options.rpm, 60.0, max_cost=options.tpm, cost=cost))
    if options.in_flight is not None:
        limiters.append(InFlight(options.in_flight))
    # A share without a limiter is an error in the settings, which `UNSET` reports.
    return limiters or ("adaptive" if config.share is None else UNSET)


def _settings(options: Options) -> Settings:
    """The settings, for a batch: no unknown retries under `--unknown report`, and enough connections.

    Settings that ask for fewer connections are respected.
    """
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


def _check_base(options: Options, parts: Parts) -> None:
    """Fail early if the token may not be sent to `--base-url`.

    Raises:
        ExposedTokenError: it would travel unencrypted.
    """
    for layer in parts.layers:
        bearer = layer.policy
        if isinstance(bearer, BearerAuth) and bearer.origins is None and options.base_url is not None:
            bearer.require_private(httpx.URL(options.base_url))
