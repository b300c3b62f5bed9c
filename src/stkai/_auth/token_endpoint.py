"""The token endpoint: asks it for a token (RFC 6749, section 4.4).

No message contains the client secret, and no frame in which an error arises holds it in a variable that a traceback
formatter would show.
"""

import math
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from typing import TYPE_CHECKING, Final
from urllib.parse import quote_plus, unquote, unquote_plus

import httpx

from .._clock import Clock
from .._errors import AuthenticationError, ConfigurationError, DeadlineExceededError, hide_frames
from .._secrets import Secret
from .._signals import raise_interrupt
from .._urls import is_private, origin_of, parse_url, show_origin
from .._wire import default
from ..transports import Context, RetryTransport, copy_request
from ..transports._bodies import json_of
from ..transports._retry.policy import RetryPolicy
from ..transports._retry.retry_after import retry_after
from .token_answer import Pause, TokenAnswer

if TYPE_CHECKING:
    from .._config.models import HttpConfig

_TIMEOUT: Final = 30.0
"""Seconds for everything, including retries."""

LONGEST_FETCH: Final = _TIMEOUT + 5.0
"""Seconds after which callers stop waiting: a head that arrives byte by byte never times out on the wire."""

_MOST: Final = 262_144
"""Bytes of an answer; a usual one is a hundred times shorter."""

_SHOWN: Final = 200
"""Characters of the endpoint's own words in our messages."""


@dataclass(kw_only=True, eq=False, repr=False)
class TokenEndpoint:
    """The endpoint where one client gets its tokens; the attributes are those of `ClientCredentialsAuthProvider`.

    Without a `transport`, one is made from `http` for each fetch, since fetches are rare.

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
        self._place = show_origin(self._url) + self._url.path  # Without its query, for messages.
        if not self.allow_http and not is_private(origin_of(self._url)):
            raise ConfigurationError(
                f"token_url {self._place} would carry the client secret unencrypted: use https://, or allow it with"
                " allow_http=True (STKAI_AUTH_ALLOW_HTTP=true)"
            )
        self._refusal: tuple[AuthenticationError, float, Pause] | None = (
            None  # As for tokens, there is no lock.
        )
        """The latest refusal of a token, and when it came; None after a token."""

    def describe(self) -> str:
        """Whose tokens, and where from, for the repr of a provider."""
        return f"client_id={self.client_id!r}, token_url={self._place!r}"

    def __repr__(self) -> str:
        return f"TokenEndpoint({getattr(self, '_place', '')})"

    def fetch(self) -> TokenAnswer:
        """An answer with a new token.

        Raises:
            AuthenticationError: there is no token; transient failures have been retried. A refusal of the credentials,
                or a request to be left alone, is remembered.
        """
        self.check_open()
        try:
            answer = self._ask()
        except Exception as error:  # noqa: BLE001 - the wire may be user code; whatever it raises
            raise_interrupt(error)
            # Its frames belong to the wire, and hold the body that was sent.
            error.__traceback__ = None
            hide_frames(error)
            what = f"{type(error).__name__}: {self._words(str(error))}"
            cause = None if self._repeats_secret(str(error)) else error
            raise AuthenticationError(f"the token endpoint {self._place} failed: {what}", cause) from cause
        problem = answer.problem(self._words)
        if problem is None:
            self._refusal = None
            return answer
        refused, pause = AuthenticationError(f"the token endpoint {self._place} {problem}"), answer.pause()
        if pause is not None:
            self._refusal = refused, self.clock.monotonic(), pause
        raise refused

    def check_open(self) -> None:
        """Leave the endpoint alone for a while after it has refused the credentials, or asked for that.

        Raises:
            AuthenticationError: it has, and the time is not over.
        """
        refusal, left = self._refusal, self.pause_left()
        if refusal is not None and left:
            error, _, pause = refusal
            msg = (
                f"{error.message} (this was {pause.seconds - left:.0f} s ago; the endpoint is not asked again for"
                f" another {left:.0f} s: {pause.why})"
            )
            raise AuthenticationError(msg, error.cause)

    def pause_left(self) -> float:
        """For how many seconds the endpoint is not asked again."""
        if self._refusal is None:
            return 0.0
        _, since, pause = self._refusal
        return max(0.0, since + pause.seconds - self.clock.monotonic())

    def _ask(self) -> TokenAnswer:
        # Set no deadline here: the layer would start another thread for it. `_Reader` looks at the clock instead.
        policy = RetryPolicy(max_retries=2, initial_delay=0.2, max_retry_after=5.0, retry_timeouts=True)
        wire = self.transport or default.default_wire(self.http)
        try:
            reader = _Reader(wire, self.clock)
            retrying = RetryTransport(reader, policy, context=Context(clock=self.clock))
            response = retrying.handle_request(self._request())
            asked = retry_after(response.headers, self.clock.utcnow())
            content = json_of(response)
            given = content if isinstance(content, dict) else {}
            return TokenAnswer(response.status_code, given, reader.asked_at, asked)
        finally:
            if wire is not self.transport:
                wire.close()

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

    def _words(self, value: object) -> str:
        """Somebody else's words, safe to show: on one line, short, and without the secret if they repeat it."""
        text = value if isinstance(value, str) else ""
        for secret in self._forms_of_secret():
            text = text.replace(secret, "[secret]")
        if self._repeats_secret(text):
            return "[words that repeat the secret]"
        return "".join(char if char.isprintable() else " " for char in text[:_SHOWN]).strip()

    def _repeats_secret(self, text: str) -> bool:
        forms = {text, unquote_plus(text), unquote(text), unescape(text)}
        return any(secret in form for form in forms for secret in self._forms_of_secret())

    def _forms_of_secret(self) -> tuple[str, ...]:
        return self.client_secret.reveal(), quote_plus(self.client_secret.reveal()), self._basic


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
            raise DeadlineExceededError(f"the answer was not complete after {_TIMEOUT:g} s")

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        size = 0
        for piece in response.iter_bytes():
            size += len(piece)
            if size > _MOST:
                raise httpx.DecodingError(f"the answer is longer than {_MOST:,} bytes")
            self._check_time()
            yield piece
