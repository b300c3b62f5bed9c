"""The five clients of StackSpot's API reference, each a few lines over the transports.

They do what the reference says and no more: none of them retries by itself (see `Retrying`, or `build_client`).
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import httpx

from .._builder import StackBuilder
from .._client import Headers, HttpClient
from .._config.stkai import STKAI
from .._errors import ConfigurationError, InvalidArgumentError, ServerSideRateLimitError
from .._exchange import check_url
from .._forks import after_fork
from ..transports._options import RequestOptions
from .._standard import Parts
from ..transports._adaptive.limiter import AimdLimiter
from ..transports._auth.bearer import BearerAuth
from ..transports._auth.flow import AuthTransport
from ..transports._auth.provider import AuthProvider
from ..transports._base import LayerTransport
from ..transports._call import OPTIONS
from ..transports._limit.flow import AdaptiveTransport, TokenBucketTransport
from ..transports._limit.token_bucket import TokenBucket
from ..transports._stk_cli import StkCLITransport

_SEND: Final = "stkai.send"


class StandaloneHttpClient(HttpClient):
    """Signs with the tokens of a provider; needs no StackSpot CLI.

    Args:
        auth_provider: where tokens come from.

    Raises:
        InvalidArgumentError: it is not a provider.
    """

    def __init__(self, auth_provider: AuthProvider) -> None:
        from .._wire.default import default_wire

        with _ArgumentErrors():
            settings = STKAI.config
            bearer = BearerAuth(auth_provider, settings.auth.origins, allow_http=settings.auth.allow_http)
            super().__init__(AuthTransport(default_wire(settings.http), bearer))


class StkCLIHttpClient(HttpClient):
    """Sends through StackSpot CLI, which must be installed and logged in (`stk login`).

    Raises:
        ConfigurationError: StackSpot CLI is not available.
    """

    def __init__(self) -> None:
        super().__init__(StkCLITransport())


class EnvironmentAwareHttpClient(HttpClient):
    """Decides on its first request: StackSpot CLI where it is installed, else the credentials of `STKAI.config`.

    Until then `STKAI.configure` may be called. Limits the rate as the settings say. Raises ConfigurationError (a
    ValueError) from that request where there is nothing to authenticate with.
    """

    def __init__(self) -> None:
        self._renew_lock()
        after_fork(self, EnvironmentAwareHttpClient._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    @property
    def transport(self) -> httpx.BaseTransport:
        """The transport that sends the requests; asking for it decides which one it is."""
        if self._transport is None:
            with self._lock:
                if self._transport is None:
                    self._transport = self._decide()
        return self._transport

    def _decide(self) -> httpx.BaseTransport:
        parts = Parts.choose(STKAI.config, retry=None)
        return StackBuilder(parts.layers).build(parts.make_wire())


class _RateLimitedHttpClient(HttpClient):
    """A client around another, with a limiter in between; GET passes unlimited."""

    def __init__(
        self, delegate: HttpClient, layer: Callable[..., LayerTransport], policy: Callable[[], object]
    ) -> None:
        with _ArgumentErrors():
            if isinstance(delegate, type) or not all(
                callable(getattr(delegate, verb, None)) for verb in ("get", "post")
            ):
                msg = f"delegate must be an HttpClient, not {delegate!r}"
                raise ConfigurationError(msg)
            self._delegate = delegate
            super().__init__(layer(_DelegateWire(delegate), policy()))

    def post_stream(
        self, url: str, data: Any = None, headers: Headers = None, timeout: float = 30, **options: Any
    ) -> Any:
        """Wait for a permit, then stream the answer of the other client."""
        send = partial(self._delegate.post_stream, url, data=data, headers=headers, timeout=timeout)
        return self._limited(url, send, RequestOptions(**options))

    def _send(
        self, method: str, url: str, data: Any, headers: Headers, timeout: float, options: RequestOptions
    ) -> httpx.Response:
        if method == "GET":
            return self._delegate.get(url, headers=headers, timeout=timeout)
        send = partial(self._delegate.post, url, data=data, headers=headers, timeout=timeout)
        return self._limited(url, send, options)

    def _limited(
        self, url: str, send: Callable[[], httpx.Response], options: RequestOptions
    ) -> httpx.Response:
        request = httpx.Request("POST", check_url(url), extensions={_SEND: send, OPTIONS: options})
        return self.transport.handle_request(request)


class TokenBucketRateLimitedHttpClient(_RateLimitedHttpClient):
    """Sends no faster than `max_requests` per `time_window` seconds through another client.

    Args:
        delegate: the client that sends; any `HttpClient`.
        max_requests: requests allowed in the window.
        time_window: seconds.
        max_wait_time: seconds that a request may wait for its permit; None for as long as it takes.

    Raises:
        InvalidArgumentError: an argument is out of its range.
    """

    def __init__(
        self, delegate: HttpClient, max_requests: int, time_window: float, max_wait_time: float | None = 45.0
    ) -> None:
        policy = partial(TokenBucket, max_requests, time_window, max_wait_time=max_wait_time)
        super().__init__(delegate, TokenBucketTransport, policy)


class AdaptiveRateLimitedHttpClient(_RateLimitedHttpClient):
    """Adapts its rate to the 429s of the server: plain AIMD with the factors given, under one cut per congestion event.

    A 429 is raised, as ServerSideRateLimitError; the next request waits as long as the server asked.

    Args:
        delegate: the client that sends; any `HttpClient`.
        max_requests: requests allowed in the window.
        time_window: seconds.
        min_rate_floor: least share of the quota that the rate falls to.
        penalty_factor: share of the rate that a cut takes.
        recovery_factor: share of the quota that is regained per window.
        max_wait_time: seconds that a request may wait for its permit; None for as long as it takes.

    Raises:
        InvalidArgumentError: an argument is out of its range.
    """

    def __init__(
        self,
        delegate: HttpClient,
        max_requests: int,
        time_window: float,
        min_rate_floor: float = 0.1,
        penalty_factor: float = 0.3,
        recovery_factor: float = 0.05,
        max_wait_time: float | None = 45.0,
    ) -> None:
        policy = partial(
            AimdLimiter,
            max_requests,
            time_window,
            min_rate_floor=min_rate_floor,
            penalty_factor=penalty_factor,
            recovery_factor=recovery_factor,
            max_wait_time=max_wait_time,
        )
        super().__init__(delegate, AdaptiveTransport, policy)

    def _limited(
        self, url: str, send: Callable[[], httpx.Response], options: RequestOptions
    ) -> httpx.Response:
        response = super()._limited(url, send, options)
        if response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            return response
        try:
            response.read()
        finally:
            response.close()
        raise ServerSideRateLimitError(response, request=httpx.Request("POST", url))


class _DelegateWire(httpx.BaseTransport):
    """The innermost transport of a decorating client: calls the verb of the other client that the request carries."""

    def __init__(self, delegate: HttpClient) -> None:
        self._delegate = delegate

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        send: Callable[[], httpx.Response] = request.extensions[_SEND]
        return send()

    def close(self) -> None:
        if hasattr(self._delegate, "close"):
            self._delegate.close()


class _ArgumentErrors:
    """Raises a wrong argument as the reference does: as an AssertionError, which here is a ValueError as well."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigurationError):
            raise InvalidArgumentError(str(error)) from error
