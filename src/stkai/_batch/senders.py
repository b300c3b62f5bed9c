"""How each kind of client sends one request, and how that is watched."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

import httpx

from .._abandonable import Job
from .._client import AsyncHttpClient, HttpClient
from .._errors import ConfigurationError, InvalidArgumentError
from .._exchange import Exchange
from .._families import alike
from ..transports._call import Attempt
from ..transports._inner import is_sound
from ..transports._operations import Flow, Operation, Send
from ..transports._retry.policy import NOT_SENT

_REFUSED: Final = frozenset({401, 408, 429, 503})
"""Answers that prove that the request did not run."""

_OWN_HEADERS: Final = frozenset({"host", "content-length", "transfer-encoding"})
"""Headers that a client of the API reference sets itself."""


class Watch(Protocol):
    """Is notified when one request goes to the wire."""

    @property
    def ending(self) -> Job | None:
        """Once this job is done, the request no longer waits, for example for a permit; None if it always waits."""
        ...

    def about_to_send(self) -> Operation | None:
        """Called right before an attempt goes to the wire; may ask for an operation first, or raise to prevent it."""
        ...

    def not_sent(self) -> None:
        """Called after an attempt, if all attempts so far prove that the request did not run."""
        ...


def sender(client: Any) -> Callable[[httpx.Request, Watch], httpx.Response]:
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


def async_sender(client: Any) -> Callable[[httpx.Request, Watch], Awaitable[httpx.Response]]:
    """A function that sends one request through an async client.

    Raises:
        ConfigurationError: it is not an async client.
    """
    if isinstance(client, AsyncHttpClient) and type(client).send is AsyncHttpClient.send:
        return partial(_asend, client)
    if isinstance(client, alike(AsyncHttpClient, httpx.AsyncClient)):
        return _sent_at_once(client.send)
    raise _wrong("asend_all", client, "a stkai.AsyncHttpClient or an httpx.AsyncClient", "send_all")


def _sent_at_once(send: Callable[[httpx.Request], Any]) -> Callable[[httpx.Request, Watch], Any]:
    """For clients whose requests may go to the wire at any time."""

    def send_at_once(request: httpx.Request, watch: Watch) -> Any:
        watch.about_to_send()
        return send(request)

    return send_at_once


def _send(client: HttpClient, request: httpx.Request, watch: Watch) -> httpx.Response:
    layer = client._open_entry()  # noqa: SLF001
    exchange = Exchange.of(layer, request)
    return exchange.finish(layer.carry_out(exchange.call, partial(_watched, exchange.flow, watch)))


async def _asend(client: AsyncHttpClient, request: httpx.Request, watch: Watch) -> httpx.Response:
    layer = client._open_entry()  # noqa: SLF001
    exchange = Exchange.of(layer, request)
    return exchange.finish(await layer.carry_out(exchange.call, partial(_watched, exchange.flow, watch)))


def _watched(
    flow: Callable[[httpx.Request, Attempt], Flow], watch: Watch, request: httpx.Request, attempt: Attempt
) -> Flow:
    """The same flow, which notifies `watch` of what it sends, and no longer waits once that or the client has ended."""
    closing, ending = attempt.closing, watch.ending
    if closing is None or ending is None:
        return (yield from _notifying(flow, watch, request, attempt))
    with closing.ending_also(ending):
        attempt.closing = ending
        return (yield from _notifying(flow, watch, request, attempt))


def _notifying(
    flow: Callable[[httpx.Request, Attempt], Flow], watch: Watch, request: httpx.Request, attempt: Attempt
) -> Flow:
    may_have_acted = False

    def send(operation: Send) -> Flow:
        nonlocal may_have_acted
        first = watch.about_to_send()
        try:
            if first is not None:
                yield first
            response: httpx.Response = yield operation
        except BaseException as error:
            may_have_acted = may_have_acted or not _is_unsent(error, operation.wire)
            raise
        else:
            may_have_acted = may_have_acted or response.status_code not in _REFUSED
            return response
        finally:
            if not may_have_acted:
                watch.not_sent()

    steps = flow(request, attempt)
    step: Callable[[], Any] = partial(next, steps)
    while True:
        try:
            operation = step()
        except StopIteration as end:
            response: httpx.Response = end.value
            return response
        try:
            result = (yield from send(operation)) if isinstance(operation, Send) else (yield operation)
        except BaseException as error:  # noqa: BLE001 - it is for the flow
            step = partial(steps.throw, error)
        else:
            step = partial(steps.send, result)


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
