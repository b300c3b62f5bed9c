"""How each kind of client sends one request, and tells when it goes to the wire."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import httpx

from .._client import AsyncHttpClient, HttpClient
from .._errors import ConfigurationError, InvalidArgumentError
from .._exchange import Exchange
from .._families import alike
from ..transports._call import Attempt
from ..transports._inner import is_sound
from ..transports._operations import Flow, Send
from ..transports._retry.policy import NOT_SENT

OnSend = Callable[[bool], None] | None
"""Called with True right before a request goes to the wire, and with False if nothing of it got there."""

_OWN_HEADERS: Final = frozenset({"host", "content-length", "transfer-encoding"})
"""Headers that a client of the API reference sets itself."""


def sender(client: Any) -> Callable[[httpx.Request, OnSend], httpx.Response]:
    """A function that sends one request through a sync client.

    Raises:
        ConfigurationError: it is not a sync client.
    """
    if isinstance(client, HttpClient):
        kind = type(client)
        if kind.post is HttpClient.post and kind.send is HttpClient.send and kind._send is HttpClient._send:  # noqa: SLF001
            return partial(_send, client)
        return _sent_at_once(_by_verbs(client))
    if isinstance(client, alike(httpx.Client)):
        return _sent_at_once(client.send)
    raise _wrong("send_all", client, "a stkai.HttpClient or an httpx.Client", "asend_all")


def async_sender(client: Any) -> Callable[[httpx.Request, OnSend], Awaitable[httpx.Response]]:
    """A function that sends one request through an async client.

    Raises:
        ConfigurationError: it is not an async client.
    """
    if isinstance(client, AsyncHttpClient) and type(client).send is AsyncHttpClient.send:
        return partial(_asend, client)
    if isinstance(client, alike(AsyncHttpClient, httpx.AsyncClient)):
        return _sent_at_once(client.send)
    raise _wrong("asend_all", client, "a stkai.AsyncHttpClient or an httpx.AsyncClient", "send_all")


def _sent_at_once(send: Callable[[httpx.Request], Any]) -> Callable[[httpx.Request, OnSend], Any]:
    """For clients whose requests may go to the wire at any time."""

    def send_at_once(request: httpx.Request, on_send: OnSend) -> Any:
        if on_send is not None:
            on_send(True)
        return send(request)

    return send_at_once


def _send(client: HttpClient, request: httpx.Request, on_send: OnSend) -> httpx.Response:
    if on_send is None:
        return client.send(request)
    layer = client._open_entry()  # noqa: SLF001
    exchange = Exchange.of(layer, request)
    return exchange.finish(layer.carry_out(exchange.call, partial(_observed, exchange.flow, on_send)))


async def _asend(client: AsyncHttpClient, request: httpx.Request, on_send: OnSend) -> httpx.Response:
    if on_send is None:
        return await client.send(request)
    layer = client._open_entry()  # noqa: SLF001
    exchange = Exchange.of(layer, request)
    return exchange.finish(await layer.carry_out(exchange.call, partial(_observed, exchange.flow, on_send)))


def _observed(
    flow: Callable[[httpx.Request, Attempt], Flow],
    on_send: Callable[[bool], None],
    request: httpx.Request,
    attempt: Attempt,
) -> Flow:
    """The same flow, observed for what it sends."""
    steps = flow(request, attempt)
    step: Callable[[], Any] = partial(next, steps)
    may_have_acted = False
    while True:
        try:
            operation = step()
        except StopIteration as end:
            response: httpx.Response = end.value
            return response
        is_send = isinstance(operation, Send)
        if is_send:
            on_send(True)
        try:
            step = partial(steps.send, (yield operation))
            may_have_acted = may_have_acted or is_send
        except BaseException as error:  # noqa: BLE001 - it is for the flow
            if is_send and not may_have_acted:
                may_have_acted = not _is_unsent(error, operation.wire)
                on_send(may_have_acted)
            step = partial(steps.throw, error)


def _is_unsent(error: BaseException, wire: object) -> bool:
    """Whether an error proves that nothing was sent; foreign wires raise ConnectError in other cases, too."""
    return isinstance(error, alike(*NOT_SENT)) and (
        isinstance(error, alike(httpx.PoolTimeout)) or is_sound(wire)
    )


def _by_verbs(client: HttpClient) -> Callable[[httpx.Request], httpx.Response]:
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
