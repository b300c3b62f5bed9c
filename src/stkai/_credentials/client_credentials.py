"""Where access tokens come from: the provider interface, and the OAuth2 client credentials flow.

RFC 6749, section 4.4.
"""

import math
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import httpx

from .._clock import Clock, SystemClock
from .._config.stkai import DEFAULT_TOKEN_URL, STKAI
from .._errors import AuthenticationError, ConfigurationError
from .._log import logger
from ..transports._auth.single_flight import Renewal

if TYPE_CHECKING:
    from .._config.models import AuthConfig, HttpConfig

_PAUSE: Final = 10.0
"""Seconds until the next try after a failed renewal, while the old token still serves."""


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
        import anyio
        from anyio.to_thread import run_sync

        # A limiter of its own: a token must not wait until the program's other threads are done.
        limiter = anyio.CapacityLimiter(1)
        return await run_sync(self.get_access_token, abandon_on_cancel=True, limiter=limiter)


class ClientCredentialsAuthProvider(AuthProvider):
    """Fetches tokens with a client id and secret, keeps one until shortly before its end, and renews it once for all.

    While one caller renews a token that still is valid, the others go on using it; if it cannot be renewed, it serves
    to its end. The token endpoint is asked again on transient failures; redirects are not followed, since the secret
    would go with them. Safe to share between threads, event loops and forked processes.

    Args:
        client_id: of the service account.
        client_secret: its secret; never shown.
        token_url: the token endpoint; https://, or http:// on this machine.
        refresh_margin: seconds before its end at which a token is renewed; at most half of its life is used.
        allow_http: lets the secret travel unencrypted to another machine.
        transport: the wire to the token endpoint; by default one that honours proxies.
        http: verification and proxies of that default wire; as the environment says where it is not given.
        clock: where time comes from.

    Raises:
        ConfigurationError: a credential is empty, the margin is negative, or the URL is none that may be used.
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
        allow_http: bool = False,
        transport: httpx.BaseTransport | None = None,
        http: "HttpConfig | None" = None,
        clock: Clock | None = None,
    ) -> None:
        credentials = {"client_id": client_id, "client_secret": client_secret, "token_url": token_url}
        for name, value in credentials.items():
            if not isinstance(value, str) or not value:
                msg = f"{name} must be a string that is not empty"
                raise ConfigurationError(msg)
        if not isinstance(refresh_margin, int | float) or not 0 <= refresh_margin < math.inf:
            msg = f"refresh_margin must be a number of seconds from 0 up, not {refresh_margin!r}"
            raise ConfigurationError(msg)
        from .token_endpoint import TokenEndpoint

        self.client_id = client_id
        self.token_url = token_url
        self.refresh_margin = refresh_margin
        self._clock = clock or SystemClock()
        self._endpoint = TokenEndpoint(
            token_url,
            client_id,
            client_secret,
            allow_http=allow_http,
            transport=transport,
            http=http,
            clock=self._clock,
        )
        self._kept = _Kept("", -math.inf, -math.inf)
        # By process, so that a fork finds none of its parent's, whose leaders it lacks. One atomic operation enters
        # a renewal, and one assignment replaces what is kept: there is no lock that a fork could leave behind.
        self._renewals: dict[int, Renewal] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(client_id={self.client_id!r}, token_url={self.token_url!r})"

    def get_access_token(self) -> str:
        token = self.cached_access_token()
        while token is None:
            token = self._renew()
        return token

    def cached_access_token(self, *, renewing: bool = False) -> str | None:
        kept, now = self._kept, self._clock.monotonic()
        if now < kept.renew_at:
            return kept.token
        if now < kept.expires_at and (renewing or os.getpid() in self._renewals):
            return kept.token
        return None

    def forget(self, token: str) -> None:
        kept = self._kept
        if token == kept.token:
            kept.renew_at = kept.expires_at = -math.inf

    def _renew(self) -> str | None:
        """Fetch a token for everybody, or wait for whoever does; None if that one was interrupted."""
        mine, process = Renewal(), os.getpid()
        try:
            renewal = self._renewals.setdefault(process, mine)
            if renewal is mine:
                self._lead(mine)
        finally:  # Interrupted, too: the others must not wait for nobody.
            if self._renewals.get(process) is mine:
                del self._renewals[process]
            mine.done.set()
        renewal.done.wait()
        return renewal.take()

    def _lead(self, renewal: Renewal) -> None:
        """Fetch a token. One that is still valid serves on where that fails."""
        kept = self._kept
        if self._clock.monotonic() < kept.renew_at:  # Somebody was done just before we began.
            renewal.token = kept.token
            return
        try:
            grant = self._endpoint.fetch()
        except AuthenticationError as error:
            now = self._clock.monotonic()
            if now >= kept.expires_at:
                renewal.error = error
                raise
            kept.renew_at = min(now + _PAUSE, kept.expires_at)
            renewal.token = kept.token
            logger.warning("the token could not be renewed, the old one is used to its end: %s", error)
        else:
            expires_at = grant.asked_at + grant.lifetime
            renew_at = expires_at - min(self.refresh_margin, grant.lifetime / 2)
            self._kept = _Kept(grant.token, renew_at, expires_at)
            renewal.token = grant.token


class _Kept:
    """A token, and the instants (monotonic seconds) from which it is renewed, and not used any more."""

    __slots__ = ("expires_at", "renew_at", "token")

    def __init__(self, token: str, renew_at: float, expires_at: float) -> None:
        self.token, self.renew_at, self.expires_at = token, renew_at, expires_at


def is_sendable(token: str) -> bool:
    """Whether a token can stand in a header: visible ASCII, no spaces (RFC 6750, section 2.1, is stricter)."""
    return bool(token) and token.isascii() and token.isprintable() and " " not in token


def create_standalone_auth(
    config: "AuthConfig | None" = None, *, http: "HttpConfig | None" = None, clock: Clock | None = None
) -> ClientCredentialsAuthProvider:
    """A provider from `config`, or from `STKAI.config.auth` where none is given.

    Args:
        config: credentials, token endpoint and margin.
        http: verification and proxies of the wire to the token endpoint; those of `STKAI.config.http` go with its
            `auth`.
        clock: where time comes from.

    Raises:
        ConfigurationError: (a ValueError) there are no credentials.
    """
    if config is None:
        config, http = STKAI.config.auth, http or STKAI.config.http
    if config.client_id is None or config.client_secret is None:
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
        allow_http=config.allow_http,
        http=http,
        clock=clock,
    )
