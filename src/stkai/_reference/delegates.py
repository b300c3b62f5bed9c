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
from ..transports._call import OPTIONS
from ..transports._options import UNSET, RequestOptions

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
        msg = (
            f"delegate must be an HttpClient, whose methods are get(url, headers, timeout) and post(url, data, headers,"
            f" timeout) with JSON as data, not {delegate!r}: derive a class from stkai.HttpClient with two methods that"
            " call your own client"
        )
        raise ConfigurationError(msg)
    client: HttpClient = delegate
    return client


@dataclass(frozen=True, slots=True)
class Sending:
    """A call to another client's method: everything but what the layers change on the way."""

    method: Callable[..., Any]
    url: str
    data: tuple[Any, ...]
    headers: Headers
    timeout: Any

    def request(self, verb: str, options: RequestOptions) -> httpx.Request:
        """What the layers see of it; they retry only if the call asks for it.

        Raises:
            InvalidArgumentError: the URL is not absolute, or a header cannot be sent.
        """
        if options.retry is UNSET:
            options = replace(options, retry=None)
        extensions: dict[str, Any] = {_SENDING: self, OPTIONS: options}
        if isinstance(self.timeout, int | float):
            extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), self.timeout)
        headers = check_headers(self.headers)
        try:
            target = absolute_url(
                self.url
            )  # It may contain credentials: requests knows what to do with them.
        except ValueError:
            target = check_url(self.url)
        return httpx.Request(verb, target, headers=headers, extensions=extensions)

    def send(self, request: httpx.Request) -> Any:
        """Call the method, with the headers and the timeout that the request has now."""
        given = httpx.Headers(self.headers)
        added = {
            name: value for name, value in request.headers.items() if name not in given and name not in _OWN
        }
        headers = {**(self.headers or {}), **added} if added else self.headers
        timeout = request.extensions.get("timeout", {}).get("read", self.timeout)
        return self.method(self.url, *self.data, headers=headers, timeout=timeout)


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
