"""One request of a client and its answer: arguments checked, a complete request made, a complete response handed up."""

import json
import math
from collections.abc import Mapping
from datetime import timedelta
from functools import cache, lru_cache
from typing import Any, Final, Self

import httpx

from ._clock import Clock
from ._errors import InvalidArgumentError, ServerSideRateLimitError
from ._options import RequestOptions
from .transports._base import CALL, AsyncLayerTransport, Call, Context, LayerTransport, copy_request

_NO_CONTEXT: Final = Context()
_JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class StreamedResponse(httpx.Response):
    """The response of `post_stream`: its body arrives while you iterate; close it, or use it in a `with` block."""

    _clock: Clock
    _started: float

    @classmethod
    def of(cls, response: httpx.Response, clock: Clock, started: float) -> Self:
        """The same response, with whatever has been read of it already."""
        streamed = object.__new__(cls)
        streamed.__dict__.update(response.__dict__, _clock=clock, _started=started)
        return streamed

    def close(self) -> None:
        self._stop_the_watch()
        super().close()

    async def aclose(self) -> None:
        self._stop_the_watch()
        await super().aclose()

    def _stop_the_watch(self) -> None:
        if not hasattr(self, "_elapsed"):
            self.elapsed = timedelta(seconds=self._clock.monotonic() - self._started)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_clock"}


class Exchange:
    """One request under way; send it in a `with` block, which names it in errors.

    Attributes:
        request: what is sent, and what `response.request` will be.
    """

    __slots__ = ("_call", "_clock", "request")

    def __init__(
        self,
        transport: object,
        method: str,
        url: str,
        data: Any,
        headers: Mapping[str, str] | None,
        timeout: float,
        options: RequestOptions,
        *,
        buffered: bool,
    ) -> None:
        context = getattr(transport, "context", None)
        # That of the stack's outermost layer, so that all read one clock.
        self._clock = (context if isinstance(context, Context) else _NO_CONTEXT).clock
        target = check_url(url)
        extensions = {"timeout": check_timeout(timeout)}
        self._call = Call(options, extensions, self._clock.monotonic(), buffered=buffered)
        content = _encode(data)
        self.request = httpx.Request(
            method,
            target,
            headers=_headers(method, target, headers, content),
            stream=httpx.ByteStream(content or b""),
            extensions={**extensions, CALL: self._call},
        )
        self.request.read()

    @classmethod
    def of(cls, transport: object, request: httpx.Request) -> Self:
        """The exchange of a request that is complete; its extensions may hold `RequestOptions` and a timeout."""
        exchange = object.__new__(cls)
        context = getattr(transport, "context", None)
        exchange._clock = (context if isinstance(context, Context) else _NO_CONTEXT).clock
        extensions = {"timeout": check_timeout(30), **request.extensions}
        exchange.request = copy_request(request, extensions=extensions)
        call = Call.start(exchange.request, exchange._clock.monotonic())
        call.buffered = True
        exchange._call = extensions[CALL] = call
        return exchange

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # The call ends here, while the request lives on in the response and may be sent anew.
        del self.request.extensions[CALL]
        if isinstance(error, httpx.RequestError):
            error.request = self.request

    def send(self, transport: httpx.BaseTransport) -> httpx.Response:
        """Send it through a stack, which keeps the deadline itself, or to a bare wire."""
        if self._call.deadline is None or isinstance(transport, LayerTransport):
            return transport.handle_request(self.request)
        from .transports._in_time import send_in_time

        return send_in_time(transport, self.request, self._call, self._clock)

    async def asend(self, transport: httpx.AsyncBaseTransport) -> httpx.Response:
        """The same for an async one."""
        if self._call.deadline is None or isinstance(transport, AsyncLayerTransport):
            return await transport.handle_async_request(self.request)
        from .transports._in_time import asend_in_time

        return await asend_in_time(transport, self.request, self._call, self._clock)

    def finish(self, response: httpx.Response) -> httpx.Response:
        """The response, which has been read, with all that belongs to it.

        Raises:
            ServerSideRateLimitError: it is a 429 that the adaptive limiter has seen.
        """
        now = self._clock.monotonic()
        self._call.finish(response, now)
        response.request = self.request
        response.elapsed = timedelta(seconds=now - self._call.started)
        if self.is_refused(response):
            raise self.refusal(response)
        return response

    def stream(self, response: httpx.Response) -> StreamedResponse:
        """The response, not read yet, with all that belongs to it."""
        streamed = StreamedResponse.of(response, self._clock, self._call.started)
        streamed.request = self.request
        self._call.finish(streamed, self._clock.monotonic())
        return streamed

    def is_refused(self, response: httpx.Response) -> bool:
        """Whether the adaptive limiter has seen a 429, and nobody tried again."""
        return self._call.paced and response.status_code == httpx.codes.TOO_MANY_REQUESTS

    def refusal(self, response: httpx.Response) -> ServerSideRateLimitError:
        """What to raise for it; the response must have been read."""
        return ServerSideRateLimitError(response, request=self.request)


def check_url(url: str) -> httpx.URL:
    """The URL, if it is absolute.

    Raises:
        InvalidArgumentError: it is not.
    """
    try:
        return _parse(url)
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        msg = f"url must be an absolute URL such as https://api.example.com/v1, not {url!r}: {error}"
        raise InvalidArgumentError(msg) from error


@lru_cache(maxsize=256)  # Parsing is the most costly step of all, and programs have few URLs.
def _parse(url: str) -> httpx.URL:
    parsed = httpx.URL(url)
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise httpx.InvalidURL("it needs http:// or https://, and a host")
    return parsed


def check_timeout(timeout: float) -> dict[str, float]:
    """The timeout in the form in which wires take it.

    Raises:
        InvalidArgumentError: it is not a positive number of seconds.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        msg = f"timeout must be a positive number of seconds, not {timeout!r}"
        raise InvalidArgumentError(msg)
    return dict.fromkeys(("connect", "read", "write", "pool"), timeout)


def _encode(data: Any) -> bytes | None:
    """`data` as JSON, as compact as httpx writes it; None for no body."""
    if data is None:
        return None
    try:
        return _JSON.encode(data).encode()
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"data must be JSON-serializable: {error}"
        raise InvalidArgumentError(msg) from error


@cache
def _default_headers() -> list[tuple[bytes, bytes]]:
    """What httpx itself sends: the content codings depend on what is installed."""
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
        return client.headers.raw


def _headers(
    method: str, url: httpx.URL, given: Mapping[str, str] | None, content: bytes | None
) -> list[tuple[bytes, bytes]]:
    """All the headers of a request, in httpx's order; those given replace the others of their names."""
    headers = [(b"Host", url.netloc), *_default_headers()]
    if method == "POST":
        headers.append((b"Content-Length", b"%d" % len(content or b"")))
    if content is not None:
        headers.append((b"Content-Type", b"application/json"))
    if not given:
        return headers
    try:
        raw = httpx.Headers(given).raw
    except (TypeError, ValueError, AttributeError) as error:
        msg = f"headers must be a dict of strings, in ASCII: {error}"
        raise InvalidArgumentError(msg) from error
    names = {name.lower() for name, _ in raw}
    return [*((name, value) for name, value in headers if name.lower() not in names), *raw]
