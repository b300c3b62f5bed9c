"""How each kind of client sends one request and reads its answer."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httpx

from .._client import AsyncHttpClient, HttpClient
from .._errors import ConfigurationError, InvalidArgumentError
from .._families import alike

Send = Callable[[httpx.Request], httpx.Response]
AsyncSend = Callable[[httpx.Request], Awaitable[httpx.Response]]

_OWN_HEADERS: Final = frozenset({"host", "content-length", "transfer-encoding"})
"""Headers that a client of the API reference sets itself."""


def sender(client: Any) -> Send:
    """A function that sends one request through a sync client.

    Raises:
        ConfigurationError: it is not a sync client.
    """
    if isinstance(client, HttpClient):
        kind = type(client)
        is_plain = kind.post is HttpClient.post and kind._send is HttpClient._send  # noqa: SLF001
        return client.send if is_plain else _by_verbs(client)
    if isinstance(client, alike(httpx.Client)):
        send: Send = client.send
        return send
    raise _wrong("send_all", client, "a stkai.HttpClient or an httpx.Client", "asend_all")


def async_sender(client: Any) -> AsyncSend:
    """A function that sends one request through an async client.

    Raises:
        ConfigurationError: it is not an async client.
    """
    if isinstance(client, AsyncHttpClient):
        return client.send
    if isinstance(client, alike(httpx.AsyncClient)):
        send: AsyncSend = client.send
        return send
    raise _wrong("asend_all", client, "a stkai.AsyncHttpClient or an httpx.AsyncClient", "send_all")


def check_request(request: object) -> None:
    """Refuse anything but a request.

    Raises:
        InvalidArgumentError: it is not a request.
    """
    if not isinstance(request, alike(httpx.Request)):
        msg = f"requests must be httpx.Request objects, as from client.build_request(...), not {request!r}"
        raise InvalidArgumentError(msg)


def _by_verbs(client: HttpClient) -> Send:
    """For clients that override the verbs, and take JSON instead of a request."""

    def send(request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name not in _OWN_HEADERS}
        timeout = request.extensions.get("timeout", {}).get("read") or 30
        if request.method == "GET":
            return client.get(str(request.url), headers, timeout)
        if request.method != "POST":
            msg = f"{type(client).__name__} sends GET and POST only, not {request.method}"
            raise InvalidArgumentError(msg)
        content = request.read()
        try:
            data = json.loads(content) if content else None
        except ValueError as error:
            msg = f"{type(client).__name__} sends JSON only: {error}"
            raise InvalidArgumentError(msg) from error
        return client.post(str(request.url), data, headers, timeout)

    return send


def _wrong(function: str, client: object, wanted: str, other: str) -> ConfigurationError:
    hint = ""
    if isinstance(client, alike(HttpClient, httpx.Client, AsyncHttpClient, httpx.AsyncClient)):
        hint = f"; use stkai.{other} with this client"
    return ConfigurationError(f"{function} needs {wanted}, not {client!r}{hint}")
