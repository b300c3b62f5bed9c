"""The token endpoint: asks for a token (RFC 6749, section 4.4), and makes sense of whatever comes back.

The client secret is in no message; the frames in which errors arise hold it in no variable that a formatter would show.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_plus

import httpx

from .._clock import Clock
from .._errors import AuthenticationError, ConfigurationError, hide_frames
from .._urls import is_private, origin_of, parse_url, show_origin
from .client_credentials import is_sendable

if TYPE_CHECKING:
    from .._config.models import HttpConfig

_TIMEOUT: Final = 30.0
"""Seconds for everything, with retries: others wait for this token."""

_MOST: Final = 262_144
"""Bytes of an answer; tokens are a hundred times shorter."""

_SHOWN: Final = 200
"""Characters of somebody else's words in our messages."""

_LIFE: Final = 1199.0
"""Seconds that a token is taken to live where the endpoint does not say: what StackSpot's tokens do."""

_LONGEST_LIFE: Final = 86_400.0
"""Seconds; whatever the endpoint says, a token is renewed once a day."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A token, and the seconds that it lives from the instant at which it was asked for."""

    token: str = field(repr=False)
    asked_at: float
    lifetime: float


class TokenEndpoint:
    """Where one client gets its tokens.

    Args:
        url: absolute; http:// only to this machine, unless `allow_http`.
        client_id: of the service account.
        client_secret: its secret.
        allow_http: lets the secret travel unencrypted.
        transport: the wire; None makes one as `http` says for each fetch, which are rare.
        http: verification and proxies of that wire.
        clock: where time comes from.

    Raises:
        ConfigurationError: the URL is none, holds a password, or is not encrypted.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        client_secret: str,
        *,
        allow_http: bool,
        transport: httpx.BaseTransport | None,
        http: "HttpConfig | None",
        clock: Clock,
    ) -> None:
        self._url = parse_url(url, "token_url", "an absolute http(s) URL")
        self._place = show_origin(self._url) + self._url.path
        if not allow_http and not is_private(origin_of(self._url)):
            msg = (
                f"token_url {self._place} would carry the client secret unencrypted: use https://, or allow it with"
                " allow_http=True (STKAI_AUTH_ALLOW_HTTP=true)"
            )
            raise ConfigurationError(msg)
        self._client_id = client_id
        self._client_secret = client_secret
        self._transport = transport
        self._http = http
        self._clock = clock

    def __repr__(self) -> str:
        return f"TokenEndpoint({self._place})"

    def fetch(self) -> Grant:
        """A new token.

        Raises:
            AuthenticationError: there was none to be had, also not after a short retry of what may be transient.
        """
        try:
            answer = self._ask()
        except Exception as error:
            # Its frames are those of the wire, which hold the body that was sent.
            error.__traceback__ = None
            hide_frames(error)
            raise self._failure(f"failed: {type(error).__name__}: {error}", error) from error
        problem = self._problem(answer)
        if problem is not None:
            raise self._failure(problem)
        return Grant(answer.content["access_token"], answer.asked_at, _lifetime(answer.content))

    def _ask(self) -> "_Answer":
        from .._wire.default import default_wire
        from ..transports._base import Context
        from ..transports._retry.transport import RetryPolicy, RetryTransport

        policy = RetryPolicy(max_retries=2, initial_delay=0.2, max_retry_after=5.0, deadline=_TIMEOUT)
        wire = self._transport or default_wire(self._http)
        try:
            reader = _Reader(wire, self._clock)
            retrying = RetryTransport(reader, policy, context=Context(clock=self._clock))
            response = retrying.handle_request(self._request())
            return _Answer(response.status_code, _content(response), reader.asked_at)
        finally:
            if wire is not self._transport:
                wire.close()

    def _request(self) -> httpx.Request:
        form = {
            "grant_type": "client_credentials",
            "client_id": self._client_id,
            "client_secret": self._client_secret,
        }
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "stkai",
        }
        timeout = httpx.Timeout(_TIMEOUT).as_dict()
        return httpx.Request("POST", self._url, data=form, headers=headers, extensions={"timeout": timeout})

    def _failure(self, problem: str, cause: BaseException | None = None) -> AuthenticationError:
        return AuthenticationError(f"the token endpoint {self._place} {problem}", cause)

    def _problem(self, answer: "_Answer") -> str | None:
        """Why the answer is of no use; None where it is."""
        said = f"answered {answer.status}"
        if 300 <= answer.status < 400:
            return f"{said}, a redirect, which is not followed, since the secret would go with it: correct token_url"
        if not 200 <= answer.status < 300:
            reasons = [self._words(answer.content.get(name)) for name in ("error", "error_description")]
            advice = (
                "; check client_id and client_secret" if answer.status == httpx.codes.UNAUTHORIZED else ""
            )
            return ": ".join([said, *filter(None, reasons)]) + advice
        if not answer.content:
            return f"{said} with something that is no JSON object: check token_url"
        token = answer.content.get("access_token")
        return (
            None if isinstance(token, str) and is_sendable(token) else f"{said} without a usable access_token"
        )

    def _words(self, value: object) -> str:
        """Somebody else's words, safe to show: on one line, short, and without the secret, should they repeat it."""
        text = value if isinstance(value, str) else ""
        for secret in (self._client_secret, quote_plus(self._client_secret)):
            text = text.replace(secret, "[secret]")
        return "".join(char if char.isprintable() else " " for char in text[:_SHOWN]).strip()


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    content: dict[str, Any] = field(repr=False)
    asked_at: float


def _content(response: httpx.Response) -> dict[str, Any]:
    """The JSON object in an answer; empty if there is none."""
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
    """Reads the whole answer within an attempt, so that one which breaks off is retried; but not more than is sane."""

    def __init__(self, wire: httpx.BaseTransport, clock: Clock) -> None:
        self._wire = wire
        self._clock = clock
        self.asked_at = -math.inf

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked_at = self._clock.monotonic()
        response = self._wire.handle_request(request)
        try:
            content = b"".join(self._pieces(response))
        finally:
            response.close()
        # These are true of what was read no more.
        kept = [
            item
            for item in response.headers.raw
            if not item[0].lower().startswith((b"content-", b"transfer-"))
        ]
        return httpx.Response(response.status_code, headers=kept, content=content)

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        size = 0
        for piece in response.iter_bytes():
            size += len(piece)
            if size > _MOST:
                msg = f"the answer is longer than {_MOST:,} bytes"
                raise httpx.DecodingError(msg)
            if self._clock.monotonic() - self.asked_at > _TIMEOUT:
                msg = f"the answer was not complete after {_TIMEOUT:g} s"
                raise httpx.ReadTimeout(msg)
            yield piece
