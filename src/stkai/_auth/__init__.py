"""Access tokens for a client id and secret: the OAuth 2.0 client credentials grant (RFC 6749, section 4.4).

No message contains the client secret, and no frame that can raise an error holds it in a variable that a traceback
formatter would show.
"""

import json
import math
from base64 import b64encode
from dataclasses import dataclass, field
from html import unescape
from typing import Final, Literal, cast
from urllib.parse import quote_plus, unquote, unquote_plus

import httpx

from .._checks import SECONDS, check_choice, check_flag, check_number, safe_repr
from .._clock import Clock, clock_or_system
from .._config import STKAI, models
from .._config.names import DEFAULT_REFRESH_MARGIN, DEFAULT_TOKEN_URL
from .._errors import AuthenticationError, ConfigurationError, hide_secrets
from .._families import alike
from .._log import logger
from .._process import raise_interrupt
from .._secrets import HoldsSecret, Secret
from .._urls import is_private, origin_of, parse_url, show_origin
from ..transports._auth import AuthProvider
from ..transports._auth.single_flight import in_background, is_running, join
from .token_endpoint import TokenAnswer, ask

__all__ = ["AuthProvider", "AuthenticationError", "ClientCredentialsAuthProvider", "create_standalone_auth"]

_MAX_QUOTED: Final = 200  # Characters of the endpoint's answer that a message quotes.

_RETRY_DELAY: Final = 10.0  # Seconds to the next attempt after a failed renewal, while the token is valid.


class ClientCredentialsAuthProvider(HoldsSecret, AuthProvider):
    """Fetches tokens with a client id and secret, and renews each one shortly before it expires, once for all callers.

    While a token is being renewed, and if its renewal fails, callers keep using it until it expires. Transient failures
    of the token endpoint are retried; redirects are not followed: that would leak the secret. A refusal of the
    credentials is remembered for 30 seconds, and a `Retry-After` for as long as it says, up to an hour: until then, the
    endpoint is not asked again. Safe to share between threads, event loops and forked processes.

    Args:
        client_id: the service account's id. White space around it and around the secret, such as the line break at the
            end of a file, is removed.
        client_secret: its secret; never shown.
        token_url: the token endpoint; https://, or http:// on this machine.
        refresh_margin: seconds before its expiry at which a token is renewed; at most half of its lifetime.
        scope: the scopes to ask for, separated by spaces; None for the endpoint's default.
        audience: the API that the token is for, if the endpoint requires it.
        client_auth: how the credentials are sent: in the "body" of the request, or as "basic" authentication
            (RFC 6749, section 2.3.1).
        allow_http: whether the secret may travel unencrypted to another machine.
        transport: the wire to the token endpoint; by default one that honours proxies.
        http: verification and proxies of that default wire; by default those of the environment.
        clock: where time comes from.

    Raises:
        ConfigurationError: an argument has an unsupported value.
    """

    DEFAULT_TOKEN_URL = DEFAULT_TOKEN_URL
    DEFAULT_REFRESH_MARGIN = DEFAULT_REFRESH_MARGIN
    token_is_for_all = True

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        token_url: str = DEFAULT_TOKEN_URL,
        refresh_margin: float = DEFAULT_REFRESH_MARGIN,
        *,
        scope: str | None = None,
        audience: str | None = None,
        client_auth: Literal["body", "basic"] = "body",
        allow_http: bool = False,
        transport: httpx.BaseTransport | None = None,
        http: "models.HttpConfig | None" = None,
        clock: Clock | None = None,
    ) -> None:
        secret = Secret(client_secret)
        del client_secret
        self.client_id = _text("client_id", Secret(client_id))
        self.token_url = _text("token_url", Secret(token_url))
        self.refresh_margin = check_number("refresh_margin", refresh_margin, SECONDS)
        check_choice("client_auth", client_auth, "body", "basic")
        check_flag("allow_http", allow_http)
        self._secret = Secret(_text("client_secret", secret))
        self._asked_for = {
            name: _text(name, Secret(given))
            for name, given in (("scope", scope), ("audience", audience))
            if given is not None
        }
        self._in_body = client_auth == "body"
        if transport is not None and not isinstance(transport, alike(httpx.BaseTransport)):
            msg = (
                f"transport must be an httpx.BaseTransport, such as httpx.HTTPTransport(), not {transport!r}"
            )
            raise ConfigurationError(msg)
        if http is not None and not isinstance(http, models.HttpConfig):
            raise ConfigurationError(
                f"http must be a stkai.HttpConfig or None, not a value of type {type(http).__name__}"
            )
        self._transport, self._http, self._clock = transport, http, clock_or_system(clock)
        self._now = self._clock.monotonic
        self._url = parse_url(self.token_url, "token_url must be an absolute http(s) URL")
        self._address = show_origin(self._url) + self._url.path  # Without the query, for messages.
        if not allow_http and not is_private(origin_of(self._url)):
            raise ConfigurationError(
                f"token_url {self._address} would carry the client secret unencrypted: use https://, or allow it with"
                " allow_http=True (STKAI_AUTH_ALLOW_HTTP=true)"
            )
        self._refusal: tuple[AuthenticationError, float, float, str] | None = None
        """The latest refusal, when it arrived, until when it is in force, and why; None once there is a token."""
        # Replaced in a single assignment, without a lock, which a fork could leave held.
        self._cached = _CachedToken("", -math.inf, -math.inf)

    @safe_repr
    def __repr__(self) -> str:
        return f"{type(self).__name__}(client_id={self.client_id!r}, token_url={self._address!r})"

    def get_access_token(self) -> str:
        token = self.cached_access_token()
        if token is not None:
            return token
        self._check_open()
        fetch = join(self._renew)
        fetch.wait()
        return cast("str", fetch.result())

    def cached_access_token(self, *, renewing: bool = False) -> str | None:
        cached, now = self._cached, self._now()
        if now < cached.renew_at or (now < cached.expires_at and (renewing or self._is_being_renewed())):
            return cached.token
        return None

    def forget(self, token: str) -> None:
        cached = self._cached
        if token == cached.token:
            cached.renew_at = cached.expires_at = -math.inf

    def _is_being_renewed(self) -> bool:
        """Whether another caller, possibly an auth layer, is fetching a token."""
        return is_running(self._renew) or (not in_background() and is_running(self.get_access_token))

    def _renew(self) -> str:
        """Fetch a token; runs in the background. If that fails, a token that is still valid stays in use."""
        cached = self._cached
        if self._now() < cached.renew_at:  # Another fetch ended just before this one started.
            return cached.token
        try:
            grant = self._fetch()
        except AuthenticationError as error:
            now = self._now()
            if now >= cached.expires_at:
                raise
            pause = 0.0 if self._refusal is None else self._refusal[2] - now
            cached.renew_at = min(now + (pause if pause > 0 else _RETRY_DELAY), cached.expires_at)
            logger.warning("the token could not be renewed; the old one is used until it expires: %s", error)
            return cached.token
        expires_at = grant.asked_at + grant.lifetime
        renew_at = expires_at - min(self.refresh_margin, grant.lifetime / 2)
        self._cached = _CachedToken(grant.token, renew_at, expires_at)
        return grant.token

    def _fetch(self) -> TokenAnswer:
        """Fetch an answer with a new token; remembers a refusal of the credentials, or a request to wait."""
        self._check_open()
        try:
            answer = ask(self._request(), self._transport, self._http, self._clock)
        except Exception as error:  # noqa: BLE001 - the wire may be user code, and raise anything
            raise_interrupt(error)
            # Its frames belong to the wire, and their variables contain the body that was sent.
            hide_secrets(error, httpx.Request("POST", self._address))
            # The error quotes a part of an answer that cannot be parsed, and that part may contain the token.
            text, quotes, _ = str(error).partition(" bytearray(")
            what = f"{type(error).__name__}: {self._quoted(text)}"
            cause = None if quotes or self._repeats_secret(str(error)) else error
            raise AuthenticationError(f"the token endpoint {self._address} failed: {what}", cause) from cause
        problem = answer.problem(self._quoted)
        if problem is None:
            self._refusal = None
            return answer
        refused = AuthenticationError(f"the token endpoint {self._address} {problem}")
        now = self._now()
        seconds, why = answer.pause()
        self._refusal = refused, now, now + seconds, why
        raise refused

    def _check_open(self) -> None:
        """Refuse to ask the endpoint again too soon after it has refused the credentials, or asked us to wait."""
        refusal, now = self._refusal, self._now()
        if refusal is not None and now < refusal[2]:
            error, since, until, why = refusal
            raise AuthenticationError(
                f"{error.message} (this was {now - since:.0f} s ago; the endpoint is not asked again for another"
                f" {until - now:.0f} s: {why})"
            )

    def _request(self) -> httpx.Request:
        form = {"grant_type": "client_credentials", **self._asked_for}
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "stkai"}
        if self._in_body:
            form |= {"client_id": self.client_id, "client_secret": self._secret.reveal()}
        else:
            headers["Authorization"] = f"Basic {self._basic}"
        return httpx.Request("POST", self._url, data=form, headers=headers)

    @property
    def _basic(self) -> str:
        # RFC 6749, section 2.3.1: form-encoded first, so that neither part contains a colon.
        pair = f"{quote_plus(self.client_id)}:{quote_plus(self._secret.reveal())}"
        return b64encode(pair.encode()).decode()

    def _quoted(self, value: object) -> str:
        """Untrusted text, made safe to show: short, on one line, and without the secret."""
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
        in_json = json.dumps(self._secret.reveal())[1:-1]
        return self._secret.reveal(), quote_plus(self._secret.reveal()), in_json, self._basic


@dataclass(slots=True)
class _CachedToken:
    """A cached token, when to renew it, and when it expires (monotonic seconds)."""

    token: str = field(repr=False)
    renew_at: float
    expires_at: float


def _text(name: str, given: Secret) -> str:
    """The text of an argument, stripped of white space. Errors never show it: it may be a misplaced secret."""
    if not given.is_text():
        raise ConfigurationError(f"{name} must be a non-empty string that can be sent as UTF-8{given.hint()}")
    return cast("str", given.reveal().strip())


def create_standalone_auth(
    config: "models.AuthConfig | None" = None,
    *,
    http: "models.HttpConfig | None" = None,
    clock: Clock | None = None,
) -> ClientCredentialsAuthProvider:
    """A provider with the settings in `config`, by default those in `STKAI.config.auth`.

    Args:
        config: credentials, token endpoint and margin.
        http: verification and proxies of the wire to the token endpoint; by default those of `STKAI.config.http` if
            `config` is not given either.
        clock: where time comes from.

    Raises:
        ConfigurationError: (a ValueError) there are no credentials.
    """
    if config is None:
        config, http = STKAI.config.auth, http or STKAI.config.http
    if not hasattr(config, "client_id"):
        msg = f"create_standalone_auth(config) takes STKAI.config.auth or the like, not a {type(config).__name__}"
        raise ConfigurationError(msg)
    if config.client_id is None or config.client_secret is None:
        raise ConfigurationError(
            "no credentials: set STKAI_AUTH_CLIENT_ID and STKAI_AUTH_CLIENT_SECRET,"
            " or call STKAI.configure(auth={'client_id': ..., 'client_secret': ...});"
            " for a token that you already have, use stkai.StaticToken(token)"
        )
    others = config.model_dump(exclude={"token", "client_secret", "origins"})
    return ClientCredentialsAuthProvider(
        client_secret=config.client_secret.get_secret_value(), http=http, clock=clock, **others
    )
