"""The stack of a batch, that of the settings; and the lines that are sent through it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Final, Self

import httpx

from .._abandonable import Job
from .._builder import StackBuilder
from .._client import AsyncHttpClient
from .._config.models import Settings
from .._config.stkai import STKAI
from .._errors import ConfigurationError
from .._standard import Parts, limiter_from
from ..costs import llm_tokens
from ..transports._auth.bearer import BearerAuth, ExposedTokenError
from ..transports._call import OPTIONS
from ..transports._limits.in_flight import InFlight
from ..transports._limits.limiter import Limiter
from ..transports._limits.token_bucket import TokenBucket
from ..transports._operations import Operation, Run
from ..transports._options import UNSET, RequestOptions
from .append_file import GroupCommit
from .errors import DroppedError, UsageError, WriteError
from .journal import Journal
from .options import Options
from .senders import async_sender

LINE: Final = "stkai.batch.line"
"""The request extension that holds the line."""

_READ: Final = 600.0
"""Seconds that a batch waits for an answer; longer if `--deadline` is."""


class LineInFlight:
    """A line that is being sent; watches its request, and records in the journal when that goes to the wire.

    Attributes:
        number: the line's number.
        custom_id: as JSON.
        execution: the id of the execution that it created, once known.
        may_drop: whether it can be dropped when the run ends: it was not sent, or was refused, or can be polled later.
    """

    ending: ClassVar[Job | None] = None
    __slots__ = ("_client", "_drop", "custom_id", "execution", "may_drop", "number")

    def __init__(
        self, client: "BatchClient", number: int, custom_id: str, execution: str | None = None
    ) -> None:
        self.number, self.custom_id, self.execution = number, custom_id, execution
        self.may_drop = True
        self._client = client
        self._drop: Callable[[], object] | None = None

    def started(self, drop: Callable[[], object]) -> None:
        """Its task has started; `drop` ends the task."""
        self._drop = drop

    def drop(self) -> None:
        """End its task, if the line may be dropped."""
        if self.may_drop and self._drop is not None:
            self._drop()

    def about_to_send(self) -> Operation | None:
        client = self._client
        if client.is_ending:
            raise DroppedError
        if client.journal is not None:
            client.journal.sent(self.number)
        self.may_drop = False
        commit = client.commit
        return None if commit is None else Run(_only_async, lambda _: commit())

    def not_sent(self) -> None:
        if self._client.journal is not None:
            # If that fails, the line counts as sent, which is safe, and the next one is not sent.
            with suppress(WriteError):
                self._client.journal.not_sent(self.number)
        self._may_be_dropped()

    async def created(self, execution: str) -> None:
        """The line has created an execution, which a resumed job goes on polling."""
        self.execution = execution
        if self._client.journal is not None:
            self._client.journal.execution(self.number, execution)
        if self._client.commit is not None:
            await self._client.commit()
        self._may_be_dropped()

    def _may_be_dropped(self) -> None:
        self.may_drop = True
        if self._client.is_ending:
            self.drop()


def line_of(request: httpx.Request) -> LineInFlight:
    """The line that a request is for."""
    line: LineInFlight = request.extensions[LINE]
    return line


class BatchClient:
    """Sends requests through the stack of the settings.

    Attributes:
        is_ending: nothing more may be sent.
        journal: where lines record that they are sent; None if nothing is recorded.
        commit: returns once the journal would survive a power failure; None if `--sync always` does not ask for that.
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
        self.journal: Journal | None = None
        self.commit: GroupCommit | None = None
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
        self._client = AsyncHttpClient(StackBuilder(parts.layers).build_async(wire))
        self._send = async_sender(self._client)
        signed = [layer for layer in parts.layers if layer.name == "auth"]
        self._unlimited = AsyncHttpClient(StackBuilder(signed).build_async(wire))

    def record_in(self, journal: Journal) -> None:
        """Use this journal from now on."""
        self.journal = journal
        self.commit = GroupCommit(journal.file) if self._needs_commit else None

    def extensions(self, line: LineInFlight) -> dict[str, Any]:
        """The extensions of a line's request."""
        return {OPTIONS: self._call, "timeout": self.timeouts, LINE: line}

    async def send(self, line: LineInFlight, request: httpx.Request) -> httpx.Response:
        """Send the request of a line with retries, within the limits."""
        return await self._send(request, line)

    async def poll(self, request: httpx.Request) -> httpx.Response:
        """Send a request once, outside the limits."""
        return await self._unlimited.send(request)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


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
