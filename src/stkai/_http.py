"""The clients of StackSpot's API reference that send by themselves: thin wrappers around the transports.

They do what the reference says and no more: none of them retries (see `Retrying` and `build_client`). Their responses
are httpx responses, plus the methods that code written for requests calls.
"""

import threading
from collections.abc import Iterator
from typing import Any, Final

import httpx

from ._builder import StackBuilder
from ._checks import argument_errors
from ._client import HttpClient
from ._config import STKAI
from ._config.names import REFERENCE_METHODS
from ._errors import InvalidArgumentError
from ._exchange import StreamedResponse
from ._process import begin_in_each_process
from ._wire import DefaultWire
from .transports._auth import AuthProvider
from .transports._auth.bearer import BearerAuth
from .transports._auth.flow import AuthTransport
from .transports._layer_transport import LayerBase
from .transports._stk_cli import StkCLITransport

__all__ = ["EnvironmentAwareHttpClient", "HttpClient", "StandaloneHttpClient", "StkCLIHttpClient"]

_MAX_REDIRECTS: Final = 30  # As many as requests follows.


class _SendingHttpClient(HttpClient):
    """A client that follows the redirects of a GET, and returns responses like those of requests."""

    def _send(self, verb: str, *args: Any) -> httpx.Response:
        response = super()._send(verb, *args)
        if verb == "get" and response.has_redirect_location:
            response = _follow(self.transport, response)
        if type(response) in {httpx.Response, StreamedResponse}:
            response.__class__ = ReferenceResponse
        return response


class StandaloneHttpClient(_SendingHttpClient):
    """Signs with a provider's tokens; needs no StackSpot CLI.

    Args:
        auth_provider: where tokens come from, or a `BearerAuth` that also says which origins may see them.

    Raises:
        InvalidArgumentError: it is neither.
    """

    def __init__(self, auth_provider: AuthProvider | BearerAuth) -> None:
        with argument_errors():
            settings = STKAI.config
            if not isinstance(auth_provider, BearerAuth):
                auth_provider = BearerAuth(
                    auth_provider, settings.auth.origins, allow_http=settings.auth.allow_http
                )
            super().__init__(AuthTransport(DefaultWire(settings.http), auth_provider))


class StkCLIHttpClient(_SendingHttpClient):
    """Sends through StackSpot CLI, which must be installed and logged in (`stk login`).

    Raises:
        ConfigurationError: StackSpot CLI is not available.
    """

    def __init__(self) -> None:
        super().__init__(StkCLITransport())


class EnvironmentAwareHttpClient(_SendingHttpClient):
    """Uses StackSpot CLI if it is installed, otherwise the credentials of `STKAI.config`; decides on its first request.

    A token in the settings (`STKAI_AUTH_TOKEN`) takes precedence over both. `STKAI.configure` works until then.
    The settings determine the rate limit. The first request raises a ConfigurationError (a ValueError) if there is
    nothing to authenticate with.
    """

    def __init__(self) -> None:
        begin_in_each_process(self, EnvironmentAwareHttpClient._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()

    @property
    def transport(self) -> httpx.BaseTransport:
        """The transport that sends the requests; it is chosen on first access."""
        if self._transport is None:
            with self._lock:
                if self._transport is None:
                    self._transport = self._decide()
        return self._transport

    def _decide(self) -> httpx.BaseTransport:
        settings = STKAI.config
        limit = settings.rate_limit
        if limit.enabled and limit.methods is None:
            limit = limit.model_copy(update={"methods": REFERENCE_METHODS})
            settings = settings.model_copy(update={"rate_limit": limit})
        return StackBuilder.standard(settings, retry=None).build()


class ReferenceResponse(StreamedResponse):
    """An `httpx.Response` that also has what code written for `requests.Response` uses, such as `ok`."""

    @property
    def ok(self) -> bool:
        """Whether the status is less than 400; also the truth value of the response."""
        return not self.is_error

    def __bool__(self) -> bool:
        return self.ok

    @property
    def reason(self) -> str:
        """The reason phrase of the status."""
        return self.reason_phrase

    @property
    def content(self) -> bytes:
        """The body; a stream that is still unread is read now, also for `text` and `json()`."""
        return self.read()

    def iter_lines(self, chunk_size: int | None = None, decode_unicode: bool = True) -> Iterator[Any]:
        """The lines of the body as they arrive: text, or with `decode_unicode=False` bytes; ignores `chunk_size`."""
        return super().iter_lines() if decode_unicode else self._byte_lines()

    def _byte_lines(self) -> Iterator[bytes]:
        # Not by decoding: text also has line breaks such as U+2028, and not all bytes are text.
        held = [b""]  # Joined only at the end of a line, which may be long.
        for chunk in self.iter_bytes():
            held.append(chunk)
            if b"\n" in chunk or b"\r" in chunk or held[-2].endswith(b"\r"):
                lines = b"".join(held).splitlines(keepends=True)
                held = [b"" if lines[-1].endswith(b"\n") else lines.pop()]
                yield from (line.rstrip(b"\r\n") for line in lines)
        rest = b"".join(held)
        if rest:
            yield rest.rstrip(b"\r\n")

    def iter_content(self, chunk_size: int | None = 1, decode_unicode: bool = False) -> Iterator[Any]:
        """The body as it arrives, in pieces of `chunk_size` bytes, or of any size."""
        return self.iter_text(chunk_size) if decode_unicode else self.iter_bytes(chunk_size)


def _follow(transport: httpx.BaseTransport, response: httpx.Response) -> httpx.Response:
    """Follow the redirects from `response`; as in an httpx client, with one deadline for all hops."""
    # StackSpot CLI follows redirects itself, and would sign a request to any origin.
    wire: Any = transport
    while isinstance(wire, LayerBase):
        wire = wire.inner
    if isinstance(wire, StkCLITransport):
        return response
    known = [response]

    def send(request: httpx.Request) -> httpx.Response:
        # Our client reads the body within the deadline; httpx would not.
        return known.pop() if known else HttpClient(transport).send(request)

    client = httpx.Client(
        transport=httpx.MockTransport(send), follow_redirects=True, max_redirects=_MAX_REDIRECTS
    )
    # Do not close the client, which does not own the transport.
    try:
        return client.send(response.request, auth=httpx.Auth())
    except (httpx.InvalidURL, InvalidArgumentError) as error:  # The server's mistake, not the caller's.
        msg = f"the server redirects to a URL that cannot be requested: {error}"
        raise httpx.RemoteProtocolError(msg, request=response.request) from error
