"""The token endpoint: sends it a request for a token, and reads the answer (RFC 6749, section 5)."""

import math
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import httpx

from .. import _wire
from .._client import HttpClient
from .._clock import Clock
from ..transports import Attempt, Context, Flow, LayerTransport, Load, RetryTransport
from ..transports._auth import is_sendable
from ..transports._bodies import is_read, json_of
from ..transports._retry.policy import RETRY_ON_STATUS_CODES, RetryPolicy
from ..transports._retry_after import retry_after

if TYPE_CHECKING:
    from .._config.models import HttpConfig

_TIMEOUT: Final = 30.0  # Seconds for everything, including retries.
_MAX_SIZE: Final = 262_144  # Maximum bytes of an answer, before and after decompression.

_ZLIB_OR_GZIP: Final = zlib.MAX_WBITS | 32

_MAX_TOKEN: Final = 65_536  # Characters; servers reject longer headers.

_DEFAULT_LIFETIME: Final = 1199.0
"""The lifetime of a token, in seconds, if the endpoint states none: that of StackSpot's tokens."""

_MAX_LIFETIME: Final = 86_400.0
"""Seconds; a token is renewed at least once a day, whatever lifetime the endpoint states."""

_REFUSAL_PAUSE: Final = 30.0
"""Seconds for which a refusal is remembered: endpoints lock accounts that try a wrong secret too often."""

_MAX_PAUSE: Final = 3600.0  # Seconds; the longest pause that an answer can cause.

_REFUSALS: Final = (400, 401, 403)
_REFUSED_CLIENT: Final = ("invalid_client", "unauthorized_client", "invalid_grant", "access_denied")
"""The statuses and error codes of an endpoint that refuses the client itself (RFC 6749, section 5.2)."""


_NO_OBJECT: Final[dict[str, Any]] = {}
"""The content of an answer that is not a JSON object."""


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    status: int
    content: dict[str, Any] = field(repr=False)  # Its JSON object, or `_NO_OBJECT`.
    asked_at: float  # When the fetch started, in seconds of the clock.
    retry_after: float | None  # Seconds that its `Retry-After` asks us to wait.

    @property
    def token(self) -> str:
        """The token. Only for an answer without a problem."""
        return cast("str", self.content["access_token"])

    @property
    def lifetime(self) -> float:
        """The token's lifetime in seconds, counted from `asked_at`."""
        value = self.content.get("expires_in")
        try:
            seconds = math.nan if isinstance(value, bool) else float(value or 0)
        except (TypeError, ValueError, OverflowError):
            return _DEFAULT_LIFETIME
        return min(seconds, _MAX_LIFETIME) if seconds > 0 else _DEFAULT_LIFETIME

    def problem(self, quote: Callable[[object], str]) -> str | None:
        """What is wrong with it; None if it has a token. `quote` makes the endpoint's text safe to show."""
        said = f"answered {self.status}"
        if 300 <= self.status < 400:
            return f"{said}, a redirect, which is not followed because it would carry the secret: correct token_url"
        reasons = [quote(self.content.get(name)) for name in ("error", "error_description")]
        if not 200 <= self.status < 300:
            advice = {401: "; check client_id and client_secret", 404: "; check token_url"}
            return ": ".join([said, *filter(None, reasons)]) + advice.get(self.status, "")
        if self.content is _NO_OBJECT:
            return f"{said} with something that is not a JSON object: check token_url"
        token = self.content.get("access_token")
        if isinstance(token, str) and len(token) <= _MAX_TOKEN and is_sendable(token):
            return None
        return ": ".join([f"{said} without a usable access_token", *filter(None, reasons)])

    def pause(self) -> tuple[float, str]:
        """How many seconds to wait, and why, before asking again after an answer with a problem."""
        code = self.content.get("error")
        refuses_client = self.status in _REFUSALS and code in _REFUSED_CLIENT
        if refuses_client or self.status == httpx.codes.UNAUTHORIZED:
            return _REFUSAL_PAUSE, "too many failed sign-ins may lock the account"
        return min(self.retry_after or 0.0, _MAX_PAUSE), "it asked for this"


def ask(
    request: httpx.Request, transport: httpx.BaseTransport | None, http: "HttpConfig | None", clock: Clock
) -> TokenAnswer:
    """The endpoint's answer, after retries. Creates a wire from `http` unless there is a `transport`."""
    policy = RetryPolicy(
        max_retries=2, initial_delay=0.2, max_retry_after=5.0, retry_timeouts=True, deadline=_TIMEOUT
    )
    wire = transport or _wire.DefaultWire(http)
    asked_at = clock.monotonic()
    try:
        reader = LayerTransport(wire, _read_limited)
        client = HttpClient(RetryTransport(reader, policy, context=Context(clock=clock)))
        response = client.send(request)
    finally:
        if wire is not transport:
            wire.close()
    content = json_of(response)
    asked = retry_after(response.headers, clock.utcnow())
    content = content if isinstance(content, dict) else _NO_OBJECT
    return TokenAnswer(response.status_code, content, asked_at, asked)


def _read_limited(layer: LayerTransport, request: httpx.Request, attempt: Attempt) -> Flow:
    """Read no more of an answer than a token can need, and a refusal for at most a second."""
    response = yield from layer.forward(request, attempt)
    yield Load(response, _MAX_SIZE, brief=response.status_code in RETRY_ON_STATUS_CODES)
    if not is_read(response) and response.headers.pop("content-encoding", ""):
        # We did not ask for compression, and a short body may decompress to gigabytes.
        with suppress(zlib.error):
            body = b"".join(cast(Any, response.stream))
            text = zlib.decompressobj(_ZLIB_OR_GZIP).decompress(body, _MAX_SIZE)
            response.stream = httpx.ByteStream(text)
    return response
