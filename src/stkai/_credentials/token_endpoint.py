"""The token endpoint: asks it for a token (RFC 6749, section 4.4), and interprets whatever it answers.

No message contains the client secret, and no frame in which an error arises holds it in a variable that a traceback
formatter would show.
"""

import math
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_plus, unquote, unquote_plus

import httpx

from .._clock import Clock
from .._errors import AuthenticationError, ConfigurationError, DeadlineExceededError, hide_frames
from .._secrets import Secret
from .._urls import is_private, origin_of, parse_url, show_origin
from .._wire import default
from ..transports import Context, RetryTransport, copy_request
from ..transports._auth.provider import is_sendable
from ..transports._retry.policy import RetryPolicy

if TYPE_CHECKING:
    from .._config.models import HttpConfig

_TIMEOUT: Final = 30.0
"""Seconds for everything, including retries."""

LONGEST_FETCH: Final = _TIMEOUT + 5.0
"""Seconds after which nobody waits any longer: the wire never times out if a head arrives byte by byte."""

_MOST: Final = 262_144
"""Bytes of an answer; a usual one is a hundred times shorter."""

_SHOWN: Final = 200
"""Characters of the endpoint's own words in our messages."""

_LIFE: Final = 1199.0
"""Seconds that a token is assumed to live if the endpoint does not say: the lifetime of StackSpot's tokens."""

_LONGEST_LIFE: Final = 86_400.0
"""Seconds; a token is renewed at least once a day, whatever the endpoint says."""

_REFUSALS: Final = frozenset({400, 401, 403})
_REFUSED_CLIENT: Final = frozenset(
    {"invalid_client", "unauthorized_client", "invalid_grant", "access_denied"}
)
"""The statuses and error codes with which an endpoint refuses the client itself (RFC 6749, section 5.2)."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A token, when it was asked for, and its lifetime from then on, in seconds."""

    token: str = field(repr=False)
    asked_at: float
    lifetime: float


class RefusedCredentialsError(AuthenticationError):
    """The endpoint answered that it does not accept these credentials; asking again would not help."""

    def plain(self) -> AuthenticationError:
        """The same error as the AuthenticationError that callers see."""
        return AuthenticationError(self.message, self.cause)


class TokenEndpoint:
    """The endpoint where one client gets its tokens.

    Args:
        url: absolute; http:// only to this machine, unless `allow_http`.
        client_id: the service account's id.
        client_secret: its secret.
        scope: what to ask for; None for the endpoint's default.
        audience: the API that the token is for, or None.
        in_body: whether to send the credentials in the body of the request, instead of as HTTP Basic authentication.
        allow_http: whether the secret may travel unencrypted.
        transport: the wire; None makes one from `http` for each fetch, since fetches are rare.
        http: verification and proxies of that wire.
        clock: where time comes from.

    Attributes:
        place: the URL without its query, for messages.

    Raises:
        ConfigurationError: the URL is invalid, contains a password, or is not encrypted.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        client_secret: Secret,
        *,
        scope: str | None,
        audience: str | None,
        in_body: bool,
        allow_http: bool,
        transport: httpx.BaseTransport | None,
        http: "HttpConfig | None",
        clock: Clock,
    ) -> None:
        self._url = parse_url(url, "token_url", "an absolute http(s) URL")
        self.place = show_origin(self._url) + self._url.path
        if not allow_http and not is_private(origin_of(self._url)):
            msg = (
                f"token_url {self.place} would carry the client secret unencrypted: use https://, or allow it with"
                " allow_http=True (STKAI_AUTH_ALLOW_HTTP=true)"
            )
            raise ConfigurationError(msg)
        self._client_id = client_id
        self._client_secret = client_secret
        self._asked_for = {"scope": scope, "audience": audience}
        self._in_body = in_body
        self._transport = transport
        self._http = http
        self._clock = clock

    def describe(self) -> str:
        """Whose tokens, and where from, for the repr of a provider."""
        return f"client_id={self._client_id!r}, token_url={self.place!r}"

    def __repr__(self) -> str:
        return f"TokenEndpoint({getattr(self, 'place', '')})"

    def fetch(self) -> Grant:
        """A new token.

        Raises:
            RefusedCredentialsError: the endpoint does not accept the credentials.
            AuthenticationError: there is no token for another reason; transient failures have been retried.
        """
        try:
            answer = self._ask()
        except Exception as error:
            # Its frames belong to the wire, and hold the body that was sent.
            error.__traceback__ = None
            hide_frames(error)
            what = f"{type(error).__name__}: {self._words(str(error))}"
            raise self._failure(f"failed: {what}", error) from error
        problem = self._problem(answer)
        if problem is not None:
            failure = self._failure(problem)
            raise RefusedCredentialsError(failure.message) if answer.is_refusal() else failure
        return Grant(answer.content["access_token"], answer.asked_at, _lifetime(answer.content))

    def _ask(self) -> "_Answer":
        # Set no deadline here: the layer would start another thread for it. `_Reader` looks at the clock instead.
        policy = RetryPolicy(max_retries=2, initial_delay=0.2, max_retry_after=5.0, retry_timeouts=True)
        wire = self._transport or default.default_wire(self._http)
        try:
            reader = _Reader(wire, self._clock)
            retrying = RetryTransport(reader, policy, context=Context(clock=self._clock))
            response = retrying.handle_request(self._request())
            return _Answer(response.status_code, _content(response), reader.asked_at)
        finally:
            if wire is not self._transport:
                wire.close()

    def _request(self) -> httpx.Request:
        form = {"grant_type": "client_credentials"}
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "stkai"}
        if self._in_body:
            form |= {"client_id": self._client_id, "client_secret": self._client_secret.reveal()}
        else:
            headers["Authorization"] = f"Basic {self._basic}"
        form |= {name: value for name, value in self._asked_for.items() if value is not None}
        return httpx.Request("POST", self._url, data=form, headers=headers)

    @property
    def _basic(self) -> str:
        # RFC 6749, section 2.3.1: form-encoded first, so that neither part contains a colon.
        pair = f"{quote_plus(self._client_id)}:{quote_plus(self._client_secret.reveal())}"
        return b64encode(pair.encode()).decode()

    def _failure(self, problem: str, cause: BaseException | None = None) -> AuthenticationError:
        return AuthenticationError(f"the token endpoint {self.place} {problem}", cause)

    def _problem(self, answer: "_Answer") -> str | None:
        """What is wrong with the answer; None if it has a token."""
        said = f"answered {answer.status}"
        if 300 <= answer.status < 400:
            return f"{said}, a redirect, which is not followed because it would carry the secret: correct token_url"
        if not 200 <= answer.status < 300:
            reasons = [self._words(answer.content.get(name)) for name in ("error", "error_description")]
            advice = (
                "; check client_id and client_secret" if answer.status == httpx.codes.UNAUTHORIZED else ""
            )
            return ": ".join([said, *filter(None, reasons)]) + advice
        if not answer.content:
            return f"{said} with something that is not a JSON object: check token_url"
        token = answer.content.get("access_token")
        return (
            None if isinstance(token, str) and is_sendable(token) else f"{said} without a usable access_token"
        )

    def _words(self, value: object) -> str:
        """Somebody else's words, safe to show: on one line, short, and without the secret if they repeat it."""
        text = value if isinstance(value, str) else ""
        secrets = (self._client_secret.reveal(), quote_plus(self._client_secret.reveal()), self._basic)
        for secret in secrets:
            text = text.replace(secret, "[secret]")
        for decode in (unquote_plus, unquote, unescape):
            if any(secret in decode(text) for secret in secrets):
                return "[words that repeat the secret]"
        return "".join(char if char.isprintable() else " " for char in text[:_SHOWN]).strip()


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    content: dict[str, Any] = field(repr=False)
    asked_at: float

    def is_refusal(self) -> bool:
        """Whether the endpoint refuses the credentials, so that asking again would not help."""
        code = self.content.get("error")
        if code is None:
            return self.status == httpx.codes.UNAUTHORIZED
        return self.status in _REFUSALS and isinstance(code, str) and code in _REFUSED_CLIENT


def _content(response: httpx.Response) -> dict[str, Any]:
    """The JSON object in an answer, or an empty dict."""
    try:
        content = response.json()
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _lifetime(content: dict[str, Any]) -> float:
    value = content.get("expires_in")
    try:
        seconds = math.nan if isinstance(value, bool) else float(value or 0)
    except (TypeError, ValueError, OverflowError):
        return _LIFE
    return min(seconds, _LONGEST_LIFE) if seconds > 0 else _LIFE


class _Reader(httpx.BaseTransport):
    """Reads the whole answer within an attempt, so that a truncated one is retried; limits its size and time."""

    def __init__(self, wire: httpx.BaseTransport, clock: Clock) -> None:
        self._wire = wire
        self._clock = clock
        self._until = clock.monotonic() + _TIMEOUT
        self.asked_at = -math.inf

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._check_time()
        self.asked_at = self._clock.monotonic()
        timeout = httpx.Timeout(max(0.0, self._until - self.asked_at)).as_dict()
        extensions = {**request.extensions, "timeout": timeout}
        response = self._wire.handle_request(copy_request(request, extensions=extensions))
        try:
            content = b"".join(self._pieces(response))
        finally:
            response.close()
        # The other headers describe the body as it travelled.
        kept = [
            item
            for item in response.headers.raw
            if not item[0].lower().startswith((b"content-", b"transfer-"))
        ]
        return httpx.Response(response.status_code, headers=kept, content=content)

    def _check_time(self) -> None:
        if self._clock.monotonic() > self._until:
            msg = f"the answer was not complete after {_TIMEOUT:g} s"
            raise DeadlineExceededError(msg)

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        size = 0
        for piece in response.iter_bytes():
            size += len(piece)
            if size > _MOST:
                msg = f"the answer is longer than {_MOST:,} bytes"
                raise httpx.DecodingError(msg)
            self._check_time()
            yield piece
