"""The five clients of StackSpot's API reference, each a few lines over the transports.

They do what the reference says and no more: none of them retries unless a call asks for it (see also `Retrying` and
`build_client`).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import httpx

from .._builder import StackBuilder
from .._client import Headers, HttpClient
from .._config.names import REFERENCE_MAX_WAIT_TIME
from .._config.stkai import STKAI
from .._errors import ConfigurationError, InvalidArgumentError, ServerSideRateLimitError
from .._forks import after_fork
from .._requests import original
from .._standard import Parts
from .._wire.default import default_wire
from ..transports._auth.bearer import BearerAuth
from ..transports._auth.flow import AuthTransport
from ..transports._auth.provider import AuthProvider
from ..transports._base import LayerTransport
from ..transports._limits.aimd import AimdLimiter
from ..transports._limits.flow import AdaptiveTransport, TokenBucketTransport
from ..transports._limits.token_bucket import TokenBucket
from ..transports._options import RequestOptions
from ..transports._retry.flow import RetryTransport
from ..transports._stk_cli import StkCLITransport
from .delegates import DelegateWire, Sending, SendingWhole, check_delegate, send_through
from .responses import follow, like_requests

_METHODS: Final = ("POST",)
"""What the reference's clients count; they never hold back a GET."""


class _SendingHttpClient(HttpClient):
    """A client that follows the redirects of a GET, and whose responses resemble those of requests."""

    def _send(self, method: str, *args: Any, **kinds: Any) -> httpx.Response:
        response = super()._send(method, *args, **kinds)
        if method == "GET":
            response = follow(self.transport, response)
        dressed: httpx.Response = like_requests(response)
        return dressed


class StandaloneHttpClient(_SendingHttpClient):
    """Signs with a provider's tokens; needs no StackSpot CLI.

    Args:
        auth_provider: where tokens come from.

    Raises:
        InvalidArgumentError: it is not a provider.
    """

    def __init__(self, auth_provider: AuthProvider) -> None:
        with _argument_errors():
            settings = STKAI.config
            bearer = BearerAuth(auth_provider, settings.auth.origins, allow_http=settings.auth.allow_http)
            super().__init__(AuthTransport(default_wire(settings.http), bearer))


class StkCLIHttpClient(_SendingHttpClient):
    """Sends through StackSpot CLI, which must be installed and logged in (`stk login`).

    Raises:
        ConfigurationError: StackSpot CLI is not available.
    """

    def __init__(self) -> None:
        super().__init__(StkCLITransport())


class EnvironmentAwareHttpClient(_SendingHttpClient):
    """Uses StackSpot CLI if it is installed, otherwise the credentials of `STKAI.config`; decides on its first request.

    A token in the settings (`STKAI_AUTH_TOKEN`) takes precedence over both. You may call `STKAI.configure` until then.
    The settings determine the rate limit. The first request raises a ConfigurationError (a ValueError) if there is
    nothing to authenticate with.
    """

    def __init__(self) -> None:
        self._renew_lock()
        after_fork(self, EnvironmentAwareHttpClient._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()

    @property
    def transport(self) -> httpx.BaseTransport:
        """The transport that sends the requests; the first access decides which one that is."""
        if self._transport is None:
            with self._lock:
                if self._transport is None:
                    made = self._decide()
                    if self._transport is None:
                        self._transport = made
                    else:  # Meanwhile a signal handler used the client, in this thread.
                        made.close()
        return self._transport

    def _decide(self) -> httpx.BaseTransport:
        settings = STKAI.config
        limit = settings.rate_limit
        if limit.enabled and limit.methods is None:
            limit = limit.model_copy(update={"methods": _METHODS})
            settings = settings.model_copy(update={"rate_limit": limit})
        parts = Parts.choose(settings, retry=None)
        return StackBuilder(parts.layers).build(parts.make_wire())


class _RateLimitedHttpClient(HttpClient):
    """A client around another one, with a limiter in between; GET requests are not limited.

    Attributes:
        delegate: the client that sends.
        max_requests: requests allowed in the window.
        time_window: seconds.
        max_wait_time: seconds that a request may wait for its permit, or None.
    """

    def __init__(
        self,
        delegate: HttpClient,
        layer: Callable[..., LayerTransport],
        policy: Callable[[], TokenBucket | AimdLimiter],
    ) -> None:
        with _argument_errors():
            self.delegate = check_delegate(delegate)
            limiter = policy()
            self._stack = RetryTransport(layer(DelegateWire(delegate), limiter))
            super().__init__(self._stack)
        self.max_requests = limiter.max_requests
        self.time_window = limiter.time_window
        self.max_wait_time = limiter.max_wait_time

    def send(self, request: httpx.Request) -> Any:
        """Wait for a permit, then let the other client's `send` send a complete request.

        Raises:
            NotImplementedError: the other client has no `send`.
        """
        return self._through(request.method, SendingWhole(self.delegate, request))

    def _send(
        self,
        method: str,
        url: str,
        data: Any,
        headers: Headers,
        timeout: float,
        options: RequestOptions,
        *,
        buffered: bool = True,
    ) -> Any:
        if method == "GET":
            sending = Sending(self.delegate.get, url, (), headers, timeout, options)
        else:
            post = self.delegate.post if buffered else self.delegate.post_stream
            sending = Sending(post, url, (data,), headers, timeout, options)
        return self._through(method, sending)

    def _through(self, method: str, sending: Sending) -> Any:
        self._open_entry()
        return original(send_through(self._stack, sending.request(method)))


class TokenBucketRateLimitedHttpClient(_RateLimitedHttpClient):
    """Sends no faster than `max_requests` per `time_window` seconds through another client.

    Args:
        delegate: the client that sends; any `HttpClient`, also one whose methods return a `requests.Response`. You get
            whatever they return.
        max_requests: requests allowed in the window.
        time_window: seconds.
        max_wait_time: seconds that a request may wait for its permit; None waits as long as necessary.

    Raises:
        InvalidArgumentError: an argument is out of range.
    """

    def __init__(
        self,
        delegate: HttpClient,
        max_requests: int,
        time_window: float,
        max_wait_time: float | None = REFERENCE_MAX_WAIT_TIME,
    ) -> None:
        policy = partial(
            TokenBucket, max_requests, time_window, max_wait_time=max_wait_time, methods=_METHODS
        )
        super().__init__(delegate, TokenBucketTransport, policy)


class AdaptiveRateLimitedHttpClient(_RateLimitedHttpClient):
    """Adapts its rate to the server's 429s: plain AIMD with the given factors, one cut per congestion event.

    A 429 is raised as a ServerSideRateLimitError; the next request waits as long as the server asked.

    Args:
        delegate: the client that sends; any `HttpClient`, also one whose methods return a `requests.Response`. You get
            whatever they return.
        max_requests: requests allowed in the window.
        time_window: seconds.
        min_rate_floor: the share of the quota that the rate never falls below.
        penalty_factor: the share of the rate that a cut takes away.
        recovery_factor: the share of the quota that is regained per window.
        max_wait_time: seconds that a request may wait for its permit; None waits as long as necessary.

    Raises:
        InvalidArgumentError: an argument is out of range.
    """

    def __init__(
        self,
        delegate: HttpClient,
        max_requests: int,
        time_window: float,
        min_rate_floor: float = 0.1,
        penalty_factor: float = 0.3,
        recovery_factor: float = 0.05,
        max_wait_time: float | None = REFERENCE_MAX_WAIT_TIME,
    ) -> None:
        policy = partial(
            AimdLimiter,
            max_requests,
            time_window,
            min_rate_floor=min_rate_floor,
            penalty_factor=penalty_factor,
            recovery_factor=recovery_factor,
            max_wait_time=max_wait_time,
            methods=_METHODS,
        )
        super().__init__(delegate, AdaptiveTransport, policy)
        self.min_rate_floor = min_rate_floor
        self.penalty_factor = penalty_factor
        self.recovery_factor = recovery_factor

    def _through(self, method: str, sending: Sending) -> Any:
        answer = super()._through(method, sending)
        if method == "GET" or getattr(answer, "status_code", None) != httpx.codes.TOO_MANY_REQUESTS:
            return answer
        try:
            # The body is available afterwards, whichever package made the response.
            if isinstance(answer, httpx.Response):
                answer.read()
            else:
                getattr(answer, "content", None)
        finally:
            if hasattr(answer, "close"):
                answer.close()
        raise ServerSideRateLimitError(answer, request=httpx.Request("POST", sending.url))


@contextmanager
def _argument_errors() -> Iterator[None]:
    """Turns configuration errors into AssertionErrors, as in the reference; they are ValueErrors as well."""
    try:
        yield
    except ConfigurationError as error:
        raise InvalidArgumentError(str(error)) from error
