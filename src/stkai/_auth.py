"""Where access tokens come from: the provider interface, and the OAuth2 client credentials flow.

RFC 6749, section 4.4.
"""

import contextlib
import math
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import httpx

from ._clock import Clock, SystemClock
from ._errors import AuthenticationError, ConfigurationError
from ._events import logger
from ._settings import DEFAULT_TOKEN_URL, STKAI

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ._config import AuthConfig

_LIFETIME: Final = 1199.0
"""Seconds that a token is taken to live where the endpoint does not say: what StackSpot's tokens do."""

_FETCH_TIMEOUT: Final = 30.0


class AuthProvider(ABC):
    """Obtains and keeps access tokens. Subclasses need only `get_access_token`, and must be thread-safe.

    The other methods have defaults: nothing is known without asking, nothing can be forgotten, and under an async
    client `get_access_token` runs in a worker thread.
    """

    @abstractmethod
    def get_access_token(self) -> str:
        """A valid access token, without "Bearer"; may take as long as a network call.

        Raises:
            AuthenticationError: no token could be had.
        """

    def get_auth_headers(self) -> dict[str, str]:
        """The `Authorization` header that goes with the token.

        Raises:
            AuthenticationError: no token could be had.
        """
        return {"Authorization": f"Bearer {self.get_access_token()}"}

    def cached_access_token(self, *, renewing: bool = False) -> str | None:
        """A valid token that is there without waiting, or None.

        Args:
            renewing: somebody is fetching a new one already, so that one near its end will do.
        """
        return None

    def forget(self, token: str) -> None:
        """Drop the token, if it is still the one in use: a server has refused it. By default nothing is kept."""
        return

    async def aget_access_token(self) -> str:
        """Like `get_access_token`, without blocking the event loop. Override it where the provider is async itself."""
        import anyio.to_thread

        return await anyio.to_thread.run_sync(self.get_access_token, abandon_on_cancel=True)


class ClientCredentialsAuthProvider(AuthProvider):
    """Fetches tokens with a client id and secret, keeps one until shortly before its end, and renews it once for all.

    While one caller renews a token that still is valid, the others go on using it. The token endpoint is asked again
    on transient failures; redirects are not followed, since the secret would go with them.

    Args:
        client_id: of the service account.
        client_secret: its secret; never shown.
        token_url: the token endpoint.
        refresh_margin: seconds before its end at which a token is renewed; at most half of its life is used.
        transport: the wire to the token endpoint; by default one that honours proxies.
        clock: where time comes from.

    Raises:
        ConfigurationError: a credential is empty, or the margin is negative.
    """

    DEFAULT_TOKEN_URL = DEFAULT_TOKEN_URL
    DEFAULT_REFRESH_MARGIN = 60

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        token_url: str = DEFAULT_TOKEN_URL,
        refresh_margin: float = DEFAULT_REFRESH_MARGIN,
        *,
        transport: httpx.BaseTransport | None = None,
        clock: Clock | None = None,
    ) -> None:
        for name, value in (
            ("client_id", client_id),
            ("client_secret", client_secret),
            ("token_url", token_url),
        ):
            if not isinstance(value, str) or not value:
                msg = f"{name} must be a string that is not empty"
                raise ConfigurationError(msg)
        if httpx.URL(token_url).scheme not in {"http", "https"}:
            msg = f"token_url must be an absolute http(s) URL, not {token_url!r}"
            raise ConfigurationError(msg)
        if not 0 <= refresh_margin < math.inf:
            msg = f"refresh_margin must be at least 0 seconds, not {refresh_margin!r}"
            raise ConfigurationError(msg)
        self.client_id = client_id
        self.token_url = token_url
        self.refresh_margin = refresh_margin
        self._client_secret = client_secret
        self._transport = transport
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._token: str | None = None
        self._renew_at = self._expires_at = -math.inf
        self._renewal: Future[str] | None = None

    def __repr__(self) -> str:
        return f"ClientCredentialsAuthProvider(client_id={self.client_id!r}, token_url={self.token_url!r})"

    def get_access_token(self) -> str:
        while True:
            with self._lock:
                token = self._usable(renewing=self._renewal is not None)
                if token is not None:
                    return token
                renewal, leads = self._renewal, self._renewal is None
                if renewal is None:
                    renewal = self._renewal = _future()
            if leads:
                return self._lead(renewal)
            token = _follow(renewal)
            if token is not None:
                return token

    def cached_access_token(self, *, renewing: bool = False) -> str | None:
        with self._lock:
            return self._usable(renewing=renewing or self._renewal is not None)

    def forget(self, token: str) -> None:
        with self._lock:
            if token == self._token:
                self._token = None

    def _usable(self, *, renewing: bool) -> str | None:
        end = self._expires_at if renewing else self._renew_at
        return self._token if self._clock.monotonic() < end else None

    def _lead(self, renewal: "Future[str]") -> str:
        """Fetch a token for everybody. A token that is still valid serves on where that fails."""
        try:
            token, lifetime = self._fetch()
        except Exception as error:
            with self._lock:
                self._renewal = None
                old = self._usable(renewing=True)
            if old is None:
                renewal.set_exception(error)
                raise
            logger.warning("the token could not be renewed, the old one is used to its end: %s", error)
            renewal.set_result(old)
            return old
        except BaseException:
            with self._lock:
                self._renewal = None
            renewal.cancel()
            raise
        with self._lock:
            now = self._clock.monotonic()
            self._token, self._expires_at = token, now + lifetime
            self._renew_at = self._expires_at - min(self.refresh_margin, lifetime / 2)
            self._renewal = None
        renewal.set_result(token)
        return token

    def _fetch(self) -> tuple[str, float]:
        """One token and its life in seconds, from the endpoint."""
        form = {
            "grant_type": "client_credentials",
            "client_id": self.client_id,
            "client_secret": self._client_secret,
        }
        timeout = httpx.Timeout(_FETCH_TIMEOUT).as_dict()
        request = httpx.Request("POST", self.token_url, data=form, extensions={"timeout": timeout})
        try:
            response = self._ask(request)
        except httpx.RequestError as error:
            msg = f"the token endpoint {self.token_url} could not be reached: {type(error).__name__}: {error}"
            raise AuthenticationError(msg, error) from error
        return _read_token(response, self.token_url)

    def _ask(self, request: httpx.Request) -> httpx.Response:
        """Send with a short retry of its own, and read the answer."""
        from ._wire import default_wire
        from .transports._base import Context
        from .transports._retry import RetryPolicy, RetryTransport

        policy = RetryPolicy(max_retries=2, initial_delay=0.2, max_retry_after=5.0)
        wire = self._transport or default_wire()
        try:
            response = RetryTransport(wire, policy, context=Context(clock=self._clock)).handle_request(
                request
            )
            with contextlib.closing(response):
                response.read()
            return response
        finally:
            if wire is not self._transport:
                wire.close()


def _future() -> "Future[str]":
    from concurrent.futures import Future

    return Future()


def _follow(renewal: "Future[str]") -> str | None:
    """What the leader of a renewal got; None if it was interrupted, so that somebody else must lead."""
    from concurrent.futures import CancelledError

    try:
        return renewal.result()
    except CancelledError:
        return None
    except AuthenticationError as error:
        raise AuthenticationError(error.message, error.cause) from error


def _read_token(response: httpx.Response, url: str) -> tuple[str, float]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        answer = {}
    if not response.is_success:
        reasons = [str(answer[key])[:200] for key in ("error", "error_description") if key in answer]
        msg = f"the token endpoint {url} answered {response.status_code}" + "".join(
            f": {text}" for text in reasons
        )
        raise AuthenticationError(msg)
    token, lifetime = answer.get("access_token"), answer.get("expires_in")
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        msg = f"the token endpoint {url} answered {response.status_code} without a usable access_token"
        raise AuthenticationError(msg)
    try:
        seconds = float(lifetime) if lifetime is not None else _LIFETIME
    except (TypeError, ValueError):
        seconds = _LIFETIME
    return token, seconds if 0 < seconds < math.inf else _LIFETIME


def create_standalone_auth(
    config: "AuthConfig | None" = None, *, clock: Clock | None = None
) -> ClientCredentialsAuthProvider:
    """A provider from `config`, or from `STKAI.config.auth` where none is given.

    Raises:
        ConfigurationError: (a ValueError) there are no credentials.
    """
    if config is None:
        config = STKAI.config.auth
    if not config.has_credentials() or config.client_id is None or config.client_secret is None:
        msg = (
            "no credentials: set STKAI_AUTH_CLIENT_ID and STKAI_AUTH_CLIENT_SECRET,"
            " or call STKAI.configure(auth={'client_id': ..., 'client_secret': ...})"
        )
        raise ConfigurationError(msg)
    return ClientCredentialsAuthProvider(
        config.client_id,
        config.client_secret.get_secret_value(),
        config.token_url,
        config.refresh_margin,
        clock=clock,
    )
