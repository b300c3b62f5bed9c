"""Sends through another client: a transport whose wire is any object with the methods of `HttpClient`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Final

import httpx

from .._client import AsyncHttpClient, Headers, HttpClient
from .._errors import ConfigurationError
from .._exchange import check_url
from .._families import HTTPX
from .._headers import check_headers
from .._requests import as_httpx, httpx_errors, httpx_kind
from .._urls import absolute_url
from ..transports._base import LayerTransport
from ..transports._call import ATTEMPT, OPTIONS, Call, copy_request
from ..transports._options import UNSET, CallOptions, RequestOptions

_SENDING: Final = "stkai.sending"
_OWN: Final = frozenset({"host", "content-length"})
"""Headers that the request gets here, and that the other client sets itself."""


def check_delegate(delegate: Any) -> HttpClient:
    """The client, if its methods are those of `HttpClient`.

    Raises:
        ConfigurationError: they are not; a requests session, for example, would send a form instead of JSON.
    """
    packages = {kind.__module__.partition(".")[0] for kind in type(delegate).__mro__}
    looks_right = not isinstance(delegate, type | ModuleType | AsyncHttpClient) and all(
        callable(getattr(delegate, verb, None)) and not inspect.iscoroutinefunction(getattr(delegate, verb))
        for verb in ("get", "post")
    )
    is_other = not isinstance(delegate, HttpClient) and packages & {"requests", "httpx", "httpx2", "aiohttp"}
    if not looks_right or is_other:
        raise ConfigurationError(
            f"delegate must be an HttpClient, whose methods are get(url, headers, timeout) and post(url, data, headers,"
            f" timeout) with JSON as data, not {delegate!r}: derive a class from stkai.HttpClient with two methods that"
            " call your own client"
        )
    client: HttpClient = delegate
    return client


@dataclass(eq=False)
class Sending:
    """A call to another client's method, with everything but what the layers change on the way.

    Attributes:
        method: a method of the other client: get, post or post_stream.
        url: where to.
        data: the body, in a tuple; empty for a GET.
        headers: the caller's own.
        timeout: in seconds.
        options: those of the call.
    """

    method: Callable[..., Any]
    url: str
    data: tuple[Any, ...]
    headers: Headers
    timeout: Any
    options: RequestOptions

    def request(self, verb: str) -> httpx.Request:
        """What the layers see of it.

        Raises:
            InvalidArgumentError: the URL is not absolute, or a header cannot be sent.
        """
        extensions: dict[str, Any] = {}
        if isinstance(self.timeout, int | float):
            extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), self.timeout)
        headers = check_headers(self.headers)
        try:
            # It may contain credentials: requests knows what to do with them.
            target = absolute_url(self.url)
        except ValueError:
            target = check_url(self.url)
        return self.marked(httpx.Request(verb, target, headers=headers, extensions=extensions))

    def marked(self, request: httpx.Request) -> httpx.Request:
        """The request with this call and its options; the layers retry it only if the call asks for it."""
        retry = None if self.options.retry is UNSET else self.options.retry
        options = replace(self.options, retry=retry)
        return copy_request(request, extensions={**request.extensions, _SENDING: self, OPTIONS: options})

    def send(self, request: httpx.Request) -> Any:
        """Call the method, with the headers and the timeout that the request has now."""
        given = httpx.Headers(self.headers)
        added = {
            name: value for name, value in request.headers.items() if name not in given and name not in _OWN
        }
        headers = {**(self.headers or {}), **added} if added else self.headers
        timeout = request.extensions.get("timeout", {}).get("read", self.timeout)
        options = _taken_by(self.method, self.options)
        return self.method(self.url, *self.data, headers=headers, timeout=timeout, **options)


class SendingWhole(Sending):
    """A call to another client's `send`, with a complete request.

    Raises:
        NotImplementedError: the other client has no `send`.
        ConfigurationError: the request's options are something else.
    """

    def __init__(self, delegate: Any, request: httpx.Request) -> None:
        if not callable(getattr(delegate, "send", None)):
            raise NotImplementedError(
                f"{type(delegate).__name__} has no send(): use get, post or post_stream"
            )
        alike = copy_request(request, extensions=dict(request.extensions))
        options = Call.start(alike, 0.0).options
        super().__init__(delegate.send, str(request.url), (), None, None, options)
        self._whole = request

    def request(self, verb: str) -> httpx.Request:
        return self.marked(self._whole)

    def send(self, request: httpx.Request) -> Any:
        options = self.options if self.options.retry is UNSET else replace(self.options, retry=None)
        extensions = {**request.extensions, OPTIONS: options}
        for own in (_SENDING, ATTEMPT):  # The other client begins a call of its own.
            extensions.pop(own, None)
        return self.method(copy_request(request, extensions=extensions))


def _taken_by(method: Callable[..., Any], options: RequestOptions) -> dict[str, Any]:
    """The options that a call sets and a method takes. Retries are made here, where each of them takes a permit."""
    given = {name: getattr(options, name) for name in CallOptions.__annotations__}
    chosen = {name: value for name, value in given.items() if value is not UNSET}
    if not chosen:
        return {}
    if "retry" in chosen:
        chosen["retry"] = None
    parameters = inspect.signature(method).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return chosen
    names = {each.name for each in parameters}
    return {name: value for name, value in chosen.items() if name in names}


class DelegateWire(httpx.BaseTransport):
    """The innermost transport of a client around another one: calls the method that the request carries."""

    def __init__(self, delegate: HttpClient) -> None:
        self._delegate = delegate

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        sending: Sending = request.extensions[_SENDING]
        # So that the retry layer recognises requests' errors; the caller sees the original.
        with httpx_errors(HTTPX):
            return as_httpx(sending.send(request))

    def close(self) -> None:
        if hasattr(self._delegate, "close"):
            self._delegate.close()


def send_through(transport: LayerTransport, request: httpx.Request) -> httpx.Response:
    """Send through the layers around a `DelegateWire`; errors of requests come out unchanged."""
    try:
        return transport.handle_request(request)
    except httpx.RequestError as error:
        cause = error.__cause__
        if isinstance(cause, Exception) and httpx_kind(cause) is not None:
            raise cause from None
        raise
