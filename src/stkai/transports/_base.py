"""What every layer stands on: the context of a stack, the two base transports, and the recipe of a layer."""

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx

from .._clock import Clock, SystemClock, uniform
from .._errors import ConfigurationError
from .._families import Family, adopt, alike, family_of_wire
from .._log import Listener, log_event, logger
from ._call import CALL, OPTIONS, Call, can_resend, copy_request

__all__ = [
    "CALL",
    "OPTIONS",
    "AsyncLayerTransport",
    "Call",
    "Context",
    "Layer",
    "LayerTransport",
    "can_resend",
    "copy_request",
]

if TYPE_CHECKING:
    from .._events import Event


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a stack gives to each of its layers: time, chance, and somebody to tell.

    Attributes:
        clock: where time comes from.
        listener: called with every event; its exceptions are logged and go no further.
        random: draws a number in [0, 1).
    """

    clock: Clock = field(default_factory=SystemClock)
    listener: Listener = log_event
    random: Callable[[], float] = uniform

    @property
    def hears_details(self) -> bool:
        """Whether anybody would learn of an event of the lowest level, which may happen at each request."""
        return self.listener is not log_event or logger.isEnabledFor(logging.DEBUG)

    def emit(self, event: "Event") -> None:
        """Tell the listener. Whatever it raises is logged: an observer does not fail a request."""
        try:
            self.listener(event)
        except Exception:  # noqa: BLE001 - user code; whatever it raises
            logger.exception("the listener failed on %s", event)


def _carrying(request: httpx.Request, call: Call) -> httpx.Request:
    """The request with the call in its extensions, for transports that are no layers but may have some further in."""
    if request.extensions.get(CALL) is call:
        return request
    return copy_request(request, extensions={**request.extensions, CALL: call})


class LayerTransport(httpx.BaseTransport):
    """Base of the sync layers: override `handle_call`, and send inward with `forward`.

    Raises:
        ConfigurationError: `inner` is not a sync transport.
    """

    name = "layer"

    def __init__(self, inner: httpx.BaseTransport, *, context: Context | None = None) -> None:
        if not isinstance(inner, alike(httpx.BaseTransport)):
            msg = f"{type(self).__name__} needs an httpx.BaseTransport inside, not {_describe(inner)}"
            raise ConfigurationError(msg)
        self._inner = inner
        self.family = family_of_wire(inner)
        self.context = context or Context()
        self._layer: LayerTransport | None = None
        # A subclass that overrides `handle_request` is to see every request there.
        if isinstance(inner, LayerTransport) and type(inner).handle_request is LayerTransport.handle_request:
            self._layer = inner

    @property
    def inner(self) -> httpx.BaseTransport:
        """The next layer, or the wire; it stays what it was when the layer was made."""
        return self._inner

    def __str__(self) -> str:
        return _chain(self.name, self._inner)

    def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        """Do this layer's work for one pass of a request. Here: nothing."""
        return self.forward(request, call)

    def forward(self, request: httpx.Request, call: Call) -> httpx.Response:
        """Send the request to the next layer, or to the wire, within what is left of the deadline.

        Raises:
            DeadlineExceededError: nothing is left, or the answer is not there in time.
        """
        layer = self._layer
        if layer is not None:
            return layer.handle_call(request, call)
        request = _carrying(request, call)
        if call.deadline is None or isinstance(self._inner, LayerTransport):
            return self._inner.handle_request(request)
        from ._in_time import send_in_time

        return send_in_time(self._inner, request, call, self.context.clock)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        call = request.extensions.get(CALL)
        if call is not None:
            return self.handle_call(request, call)
        if self.family is not None and not isinstance(request, self.family.Request):
            raise _foreign(self.family)
        clock = self.context.clock
        call = Call.start(request, clock.monotonic())
        try:
            response = self.handle_call(request, call)
        except alike(httpx.RequestError) as error:
            error.request = request
            adopt(error, request)
            raise
        call.finish(response, clock.monotonic())
        return response

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._inner.__exit__(exc_type, exc_value, traceback)


class AsyncLayerTransport(httpx.AsyncBaseTransport):
    """Base of the async layers, on asyncio and trio: override `handle_call`, and send inward with `forward`.

    Raises:
        ConfigurationError: `inner` is not an async transport.
    """

    name = "layer"

    def __init__(self, inner: httpx.AsyncBaseTransport, *, context: Context | None = None) -> None:
        if not isinstance(inner, alike(httpx.AsyncBaseTransport)):
            msg = f"{type(self).__name__} needs an httpx.AsyncBaseTransport inside, not {_describe(inner)}"
            raise ConfigurationError(msg)
        self._inner = inner
        self.family = family_of_wire(inner)
        self.context = context or Context()
        self._layer: AsyncLayerTransport | None = None
        # A subclass that overrides `handle_async_request` is to see every request there.
        if (
            isinstance(inner, AsyncLayerTransport)
            and type(inner).handle_async_request is AsyncLayerTransport.handle_async_request
        ):
            self._layer = inner

    @property
    def inner(self) -> httpx.AsyncBaseTransport:
        """The next layer, or the wire; it stays what it was when the layer was made."""
        return self._inner

    def __str__(self) -> str:
        return _chain(self.name, self._inner)

    async def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        """Do this layer's work for one pass of a request. Here: nothing."""
        return await self.forward(request, call)

    # No coroutine of its own: each is kept in memory for as long as the request waits.
    def forward(self, request: httpx.Request, call: Call) -> Coroutine[Any, Any, httpx.Response]:
        """Send the request to the next layer, or to the wire, within what is left of the deadline.

        Raises:
            DeadlineExceededError: nothing is left, or the answer is not there in time.
        """
        layer = self._layer
        if layer is not None:
            return layer.handle_call(request, call)
        request = _carrying(request, call)
        if call.deadline is None or isinstance(self._inner, AsyncLayerTransport):
            return self._inner.handle_async_request(request)
        from ._in_time import asend_in_time

        return asend_in_time(self._inner, request, call, self.context.clock)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = request.extensions.get(CALL)
        if call is not None:
            return await self.handle_call(request, call)
        if self.family is not None and not isinstance(request, self.family.Request):
            raise _foreign(self.family)
        clock = self.context.clock
        call = Call.start(request, clock.monotonic())
        try:
            response = await self.handle_call(request, call)
        except alike(httpx.RequestError) as error:
            error.request = request
            adopt(error, request)
            raise
        call.finish(response, clock.monotonic())
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._inner.__aexit__(exc_type, exc_value, traceback)


def _foreign(family: Family) -> ConfigurationError:
    """What to say of a request that the wire could not read."""
    name = family.__name__
    return ConfigurationError(
        f"the stack stands on a wire of {name}, and the request is not one of {name}: build the stack on a wire of"
        " the client's own package, or on none, as build_transport() does by default"
    )


def _chain(name: str, inner: object) -> str:
    """A stack in words, outermost first."""
    return f"{name} > {inner if isinstance(inner, LayerTransport | AsyncLayerTransport) else 'wire'}"


def _describe(inner: object) -> str:
    kind = type(inner).__name__
    if isinstance(inner, alike(httpx.AsyncBaseTransport)):
        return f"the async {kind}: build the async stack, or pass a sync wire such as httpx.HTTPTransport()"
    if isinstance(inner, alike(httpx.BaseTransport)):
        return (
            f"the sync {kind}: build the sync stack, or pass an async wire such as httpx.AsyncHTTPTransport()"
        )
    return f"{inner!r}" if isinstance(inner, type) else f"a {kind}"


@dataclass(frozen=True, slots=True)
class Layer:
    """A recipe for one layer of a stack: a name, and how to put it around an inner transport, sync and async.

    Attributes:
        name: unique in a stack.
        sync: called as `sync(inner, context=context)`; returns an `httpx.BaseTransport`.
        asynchronous: the same for `httpx.AsyncBaseTransport`.
        policy: what the layer obeys, if it likes to be asked; two stacks that hold the same object share its state.
    """

    name: str
    sync: Callable[..., httpx.BaseTransport]
    asynchronous: Callable[..., httpx.AsyncBaseTransport]
    policy: object = None

    def __str__(self) -> str:
        return self.name
