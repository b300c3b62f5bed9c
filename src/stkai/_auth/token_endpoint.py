"""The token endpoint: requests a token, and reads the answer (RFC 6749, sections 4.4 and 5).

No message contains the client secret, and no frame that can raise an error holds it in a variable that a traceback
formatter would show.
"""

import math
import zlib
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from html import unescape
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote_plus, unquote, unquote_plus

import httpx

from .._client import HttpClient
from .._clock import Clock
from .._errors import AuthenticationError, ConfigurationError, hide_secrets
from .._process import raise_interrupt
from .._secrets import Secret
from .._urls import is_private, origin_of, parse_url, show_origin
from .._wire import default
from ..transports import Attempt, Context, Flow, LayerTransport, Load, RetryTransport
from ..transports._auth.provider import is_sendable
from ..transports._bodies import is_there, json_of
from ..transports._retry.policy import RETRY_ON_STATUS_CODES, RetryPolicy
from ..transports._retry_after import retry_after

if TYPE_CHECKING:
    from .._config.models import HttpConfig

_TIMEOUT: Final = 30.0  # Seconds for everything, including retries.
_MAX_SIZE: Final = 262_144  # Bytes of an answer, also unpacked; most are a hundred times shorter.

_ZLIB_OR_GZIP: Final = zlib.MAX_WBITS | 32

_MAX_TOKEN: Final = 65_536  # Characters; servers reject longer headers.
_MAX_QUOTED: Final = 200  # Characters of the endpoint's answer that a message quotes.

_DEFAULT_LIFETIME: Final = 1199.0
"""Seconds: the assumed lifetime of a token if the endpoint states none; that of StackSpot's tokens."""

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
        token: str = self.content["access_token"]
        return token

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
        """What is wrong with it; None if it has a token. `quote` makes text of the endpoint safe to show."""
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
        if refuses_client or (code is None and self.status == httpx.codes.UNAUTHORIZED):
            return _REFUSAL_PAUSE, "too many failed sign-ins may lock the account"
        return min(self.retry_after or 0.0, _MAX_PAUSE), "it asked for this"


@dataclass(kw_only=True, eq=False, repr=False)
class TokenEndpoint:
    """The endpoint where one client gets its tokens; for the attributes, see `ClientCredentialsAuthProvider`.

    Without a `transport`, each fetch makes one from `http`, since fetches are rare.

    Raises:
        ConfigurationError: the URL is invalid, contains a password, or is not encrypted.
    """

    url: str
    client_id: str
    client_secret: Secret
    scope: str | None
    audience: str | None
    in_body: bool
    allow_http: bool
    transport: httpx.BaseTransport | None
    http: "HttpConfig | None"
    clock: Clock

    def __post_init__(self) -> None:
        self._url = parse_url(self.url, "token_url must be an absolute http(s) URL")
        self._address = show_origin(self._url) + self._url.path  # Without the query, for messages.
        if not self.allow_http and not is_private(origin_of(self._url)):
            raise ConfigurationError(
                f"token_url {self._address} would carry the client secret unencrypted: use https://, or allow it with"
                " allow_http=True (STKAI_AUTH_ALLOW_HTTP=true)"
            )
        self._refusal: tuple[AuthenticationError, float, float, str] | None = None
        """The latest refusal, since when and until when it is in force, and why; None after a token."""

    def describe(self) -> str:
        """The client and the endpoint, for the repr of a provider."""
        return f"client_id={self.client_id!r}, token_url={self._address!r}"

    def fetch(self) -> TokenAnswer:
        """Fetch an answer with a new token.

        Raises:
            AuthenticationError: there is no token; transient failures have been retried. A refusal of the credentials,
                or a request to wait, is remembered.
        """
        self.check_open()
        try:
            answer = self._ask()
        except Exception as error:  # noqa: BLE001 - the wire may be user code, and raise anything
            raise_interrupt(error)
            # Its frames belong to the wire, and their variables contain the body that was sent.
            hide_secrets(error, httpx.Request("POST", self._address))
            what = f"{type(error).__name__}: {self._quoted(str(error))}"
            cause = None if self._repeats_secret(str(error)) else error
            raise AuthenticationError(f"the token endpoint {self._address} failed: {what}", cause) from cause
        problem = answer.problem(self._quoted)
        if problem is None:
            self._refusal = None
            return answer
        refused = AuthenticationError(f"the token endpoint {self._address} {problem}")
        now = self.clock.monotonic()
        seconds, why = answer.pause()
        self._refusal = refused, now, now + seconds, why
        raise refused

    def check_open(self) -> None:
        """Refuse to ask the endpoint again too soon after it has refused the credentials, or asked us to wait.

        Raises:
            AuthenticationError: it has, and the time is not over.
        """
        refusal, now = self._refusal, self.clock.monotonic()
        if refusal is not None and now < refusal[2]:
            error, since, until, why = refusal
            msg = (
                f"{error.message} (this was {now - since:.0f} s ago; the endpoint is not asked again for another"
                f" {until - now:.0f} s: {why})"
            )
            raise AuthenticationError(msg)

    def pause_left(self) -> float:
        """Seconds until the endpoint may be asked again."""
        return 0.0 if self._refusal is None else max(0.0, self._refusal[2] - self.clock.monotonic())

    def _ask(self) -> TokenAnswer:
        policy = RetryPolicy(
            max_retries=2, initial_delay=0.2, max_retry_after=5.0, retry_timeouts=True, deadline=_TIMEOUT
        )
        wire = self.transport or default.DefaultWire(self.http)
        asked_at = self.clock.monotonic()
        try:
            reader = LayerTransport(wire, _read_limited)
            client = HttpClient(RetryTransport(reader, policy, context=Context(clock=self.clock)))
            response = client.send(self._request())
        finally:
            if wire is not self.transport:
                wire.close()
        content = json_of(response)
        asked = retry_after(response.headers, self.clock.utcnow())
        content = content if isinstance(content, dict) else _NO_OBJECT
        return TokenAnswer(response.status_code, content, asked_at, asked)

    def _request(self) -> httpx.Request:
        form = {"grant_type": "client_credentials"}
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "stkai"}
        if self.in_body:
            form |= {"client_id": self.client_id, "client_secret": self.client_secret.reveal()}
        else:
            headers["Authorization"] = f"Basic {self._basic}"
        asked_for = {"scope": self.scope, "audience": self.audience}
        form |= {name: value for name, value in asked_for.items() if value is not None}
        return httpx.Request("POST", self._url, data=form, headers=headers)

    @property
    def _basic(self) -> str:
        # RFC 6749, section 2.3.1: form-encoded first, so that neither part contains a colon.
        pair = f"{quote_plus(self.client_id)}:{quote_plus(self.client_secret.reveal())}"
        return b64encode(pair.encode()).decode()

    def _quoted(self, value: object) -> str:
        """Untrusted text, made safe to show: short, on one line, and without the secret, should it contain that."""
        text = value if isinstance(value, str) else ""
        for secret in self._forms_of_secret():
            text = text.replace(secret, "[secret]")
        if self._repeats_secret(text):
            return "[words that repeat the secret]"
        return "".join(char if char.isprintable() else " " for char in text[:_MAX_QUOTED]).strip()

    def _repeats_secret(self, text: str) -> bool:
        forms = {text, unquote_plus(text), unquote(text), unescape(text)}
        return any(secret in form for form in forms for secret in self._forms_of_secret())

    def _forms_of_secret(self) -> tuple[str, ...]:
        return self.client_secret.reveal(), quote_plus(self.client_secret.reveal()), self._basic


def _read_limited(layer: LayerTransport, request: httpx.Request, attempt: Attempt) -> Flow:
    """Read no more of an answer than a token can need, and a refusal for at most a second."""
    response = yield from layer.forward(request, attempt)
    yield Load(response, _MAX_SIZE, brief=response.status_code in RETRY_ON_STATUS_CODES)
    if not is_there(response) and response.headers.pop("content-encoding", ""):
        # We did not ask for compression, and a short body may unpack to gigabytes.
        with suppress(zlib.error):
            body = b"".join(cast(Any, response.stream))
            text = zlib.decompressobj(_ZLIB_OR_GZIP).decompress(body, _MAX_SIZE)
            response.stream = httpx.ByteStream(text)
    return response
