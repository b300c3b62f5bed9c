"""The base classes of all layers: a sync and an async transport, which share the flow."""

from collections.abc import Collection, Coroutine
from functools import partial
from logging import DEBUG, INFO
from threading import get_ident, main_thread
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

from .._abandonable import Latch
from .._checks import safe_repr
from .._errors import ConfigurationError
from .._families import alike, family_of_wire
from .._headers import copy_request, with_fields
from .._process import refuse_in_handler
from .._secrets import StaysInProcess
from ._async_driver import aclose_response, adrive
from ._call import ATTEMPT, Attempt, Beginning, Call, Enter, begin
from ._context import Context, attempt_finished, attempt_started, call_failed, call_finished, call_started
from ._driver import close_response, drive
from ._layer_checks import (
    FlowFunction,
    OfOtherKind,
    check_flow,
    check_inner,
    foreign,
    is_leaf,
    is_sound,
    not_initialised,
    of_other_kind,
    with_clear_errors,
)
from ._operations import Close, Flow, Send

_MAIN: Final = main_thread().ident


def _to_wire(inner: Any, context: Context, is_direct: bool, request: httpx.Request, attempt: Attempt) -> Flow:
    """Send to a transport that is not one of our layers; `is_direct` if no layer of ours is further inside."""
    if not is_direct and request.extensions.get(ATTEMPT) is not attempt:
        request = copy_request(request, extensions={**request.extensions, ATTEMPT: attempt})
    if not (attempt.is_observed and context.observes(DEBUG)):
        response: httpx.Response = yield Send(inner, request, attempt)
        return response
    start = context.now()
    try:
        added = attempt_started(context, attempt)
        if added is not None:
            request = copy_request(request, with_fields(request.headers, added))
        response = yield Send(inner, request, attempt)
    except BaseException as error:
        attempt_finished(context, attempt, start, error=type(error).__name__)
        raise
    try:
        attempt_finished(context, attempt, start, status=response.status_code)
    except BaseException:  # An interrupt while a listener was being called.
        yield Close(response)
        raise
    return response


class LayerBase(StaysInProcess):
    """The parts that sync and async layers share: everything but the driver.

    Attributes:
        name: the layer's name.
        context: the stack's clock, random numbers and listener.
        family: the package (httpx or httpx2) whose requests the wire takes; None if it takes those of both.
        full_pools: the wire's connection pools whose connections are all in use.
        wire_is_sound: whether the connection errors of the wire mean that nothing was sent.
    """

    name = "layer"
    _kind: type
    _body: type
    _next: Enter
    _onward: Enter

    def __init__(
        self,
        inner: Any,
        flow: FlowFunction | None = None,
        *,
        context: Context | None = None,
        name: str | None = None,
    ) -> None:
        if name is not None:
            self.name = name
        check_inner(self, inner, self._kind)
        if not isinstance(context, Context | None):
            raise ConfigurationError(f"context must be a stkai.Context or None, not {context!r}")
        self._inner = inner
        self._function = None if flow is None else with_clear_errors(check_flow(self.name, flow))
        self.context = context or Context()
        joins, is_ours = self._joins(inner), type(self).forward is LayerBase.forward
        is_direct = not joins and is_leaf(inner)
        self._next = inner.flow if joins else partial(_to_wire, inner, self.context, is_direct)
        if is_ours:  # Flows of ours can skip `forward`.
            self._onward = self._next
        self._sends = is_direct and is_ours
        self.wire_is_sound = is_sound(inner, self._kind) and getattr(inner, "wire_is_sound", True)
        self.full_pools: Collection[Any] = getattr(inner, "full_pools", ())
        self.reserve_connection: Any = getattr(inner, "reserve_connection", None)
        self.family = family_of_wire(inner)
        self._takes = object if self.family is None else self.family.Request
        self._closed_latch = Latch()
        self._is_in_main_thread = False

    @property
    def inner(self) -> Any:
        """The next layer, or the wire; fixed when the layer is made."""
        return self._inner

    def _joins(self, inner: object) -> bool:
        """Whether the flow of the next layer can be entered directly."""
        is_sync = self._kind is httpx.BaseTransport
        ours, method = (
            (LayerTransport, "handle_request") if is_sync else (AsyncLayerTransport, "handle_async_request")
        )
        # A subclass that overrides httpx's method must see every request there.
        return isinstance(inner, ours) and getattr(type(inner), method) is getattr(ours, method)

    def __init_subclass__(cls) -> None:
        """Check the flows of users' layers, including those of a mix-in."""
        super().__init_subclass__()
        if cls.forward is not LayerBase.forward:
            setattr(cls, "_onward", cls.forward)  # noqa: B010 - as below
        module = getattr(cls.flow, "__module__", None) or ""
        if not module.startswith("stkai.") and not hasattr(cls.flow, "__wrapped__"):
            setattr(cls, "flow", with_clear_errors(cls.flow))  # noqa: B010 - a method, to type checkers

    def flow(self, request: httpx.Request, attempt: Attempt) -> Flow:
        """This layer's work for one pass of a request; by default the function given to the constructor."""
        if self._function is not None:
            return self._function(self, request, attempt)
        return self.forward(request, attempt)

    def forward(self, request: httpx.Request, attempt: Attempt) -> Flow:
        """Send the request to the next layer, or to the wire. Call it as `yield from self.forward(...)`."""
        return self._next(request, attempt)

    def _begin(self, request: httpx.Request) -> Beginning:
        """Begin the call of a request."""
        try:
            if not isinstance(request, self._takes):
                assert self.family is not None
                raise foreign(self.family)
        except AttributeError:
            raise not_initialised(self) from None
        if not isinstance(request.stream, self._body):
            self.check_body(request)
        return begin(request, self.context.now())

    def check_body(self, request: httpx.Request) -> None:
        """Raise an InvalidArgumentError for a body that only the other kind of client can send."""
        if not isinstance(request.stream, alike(self._body)):
            raise of_other_kind(is_async=self._body is httpx.AsyncByteStream)

    def __str__(self) -> str:
        return f"{self.name} > {self._inner if isinstance(self._inner, LayerBase) else 'wire'}"

    @safe_repr
    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}{self.describe()}>"

    def describe(self) -> str:
        """The current state of this layer and those inside it, to show after their names; empty if there is none."""
        return self._inner.describe() if isinstance(self._inner, LayerBase) else ""


class LayerTransport(LayerBase, httpx.BaseTransport):
    """Base class of the sync layers; a complete layer if given `flow=`.

    Override `flow`, a generator that sends inward with `yield from self.forward(request, attempt)`.

    Args:
        inner: the next layer, or the wire.
        flow: a function to use as the `flow` method, called as `flow(layer, request, attempt)`.
        context: the stack's clock, random numbers and listener.
        name: the layer's name; by default that of its class.

    Raises:
        ConfigurationError: `inner` is not a sync transport.
    """

    _kind, _body = httpx.BaseTransport, httpx.SyncByteStream

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if ATTEMPT in request.extensions:
            attempt = request.extensions[ATTEMPT]
            if not isinstance(attempt, Attempt):
                return self.carry_out(self._begin(request), partial(attempt, self.flow))
            return drive(self.flow(request, attempt), attempt, self.context.clock)
        return self.carry_out(self._begin(request))

    def carry_out(self, call: Call | Beginning, flow: Enter | None = None) -> httpx.Response:
        """Carry out a call with a flow, by default the layer's own: report its start and end, and attach its record."""
        context = self.context
        attempt, is_observed = Attempt(call, self._closed_latch, False), context.observes(INFO)
        is_main, is_nested = get_ident() == _MAIN, self._is_in_main_thread
        if is_main:
            if is_nested:
                refuse_in_handler()
            self._is_in_main_thread = True
        response: httpx.Response | None = None
        try:
            if is_observed:
                call_started(context, attempt)
            steps = self.flow(attempt.request, attempt) if flow is None else flow(attempt.request, attempt)
            response = drive(steps, attempt, context.clock)
            attempt.finish(response, context.now())
            if is_observed:
                call_finished(context, attempt, status=response.status_code)
        except BaseException as error:
            if response is not None:  # An interrupt, perhaps while a listener was notified.
                close_response(response)
            call_failed(context, attempt, error)
            raise
        finally:
            if is_main:
                self._is_in_main_thread = is_nested
        return response

    def close(self) -> None:
        self._closed_latch.run()
        self._inner.close()

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed_latch.run()
        self._inner.__exit__(*error)

    if not TYPE_CHECKING:
        handle_async_request, aclose, __aenter__ = (
            OfOtherKind("httpx.AsyncClient", "build_async_transport()") for _ in range(3)
        )


class AsyncLayerTransport(LayerBase, httpx.AsyncBaseTransport):
    """Base class of the async layers, on asyncio and trio; takes the same flows as `LayerTransport`.

    Raises:
        ConfigurationError: `inner` is not an async transport.
    """

    _kind, _body = httpx.AsyncBaseTransport, httpx.AsyncByteStream

    def handle_async_request(self, request: httpx.Request) -> Coroutine[Any, Any, httpx.Response]:
        if ATTEMPT in request.extensions:
            attempt = request.extensions[ATTEMPT]
            if not isinstance(attempt, Attempt):
                return self.carry_out(self._begin(request), partial(attempt, self.flow))
            return adrive(self.flow(request, attempt), attempt, self.context.clock)
        return self.carry_out(self._begin(request))

    async def carry_out(self, call: Call | Beginning, flow: Enter | None = None) -> httpx.Response:
        """Carry out a call with a flow, by default the layer's own: report its start and end, and attach its record."""
        context = self.context
        attempt, is_observed = Attempt(call, self._closed_latch, False), context.observes(INFO)
        response: httpx.Response | None = None
        try:
            if is_observed:
                call_started(context, attempt)
            steps = self.flow(attempt.request, attempt) if flow is None else flow(attempt.request, attempt)
            response = await adrive(steps, attempt, context.clock)
            attempt.finish(response, context.now())
            if is_observed:
                call_finished(context, attempt, status=response.status_code)
        except BaseException as error:
            if response is not None:  # An interrupt, perhaps while a listener was notified.
                await aclose_response(response)
            call_failed(context, attempt, error)
            raise
        return response

    async def aclose(self) -> None:
        self._closed_latch.run()
        await self._inner.aclose()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._closed_latch.run()
        await self._inner.__aexit__(*error)

    if not TYPE_CHECKING:
        handle_request, close, __enter__ = (
            OfOtherKind("httpx.Client", "build_transport()") for _ in range(3)
        )
