"""What every layer is built on: the two base transports, and the flow that they share."""

from collections.abc import Callable, Coroutine
from logging import DEBUG, INFO
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

from .._errors import ConfigurationError
from .._families import Family, adopt, alike, family_of_wire
from ._async_driver import aclose_response, adrive
from ._call import ATTEMPT, Attempt, Call, copy_request
from ._context import Context
from ._driver import close_response, drive
from ._operations import Close, Flow, Send
from ._own_layers import FlowFunction, check_flow, checked

if TYPE_CHECKING:
    from ..events import CallInfo

_LEAVES: Final = (httpx.HTTPTransport, httpx.AsyncHTTPTransport, httpx.MockTransport)
_NOTE: Final = "stkai: "
_ASYNC_ONLY: Final = frozenset({"handle_async_request", "__aenter__", "aclose"})
_SYNC_ONLY: Final = frozenset({"handle_request", "__enter__", "close"})


class LayerBase:
    """What the sync and the async layers share: everything but the driver."""

    name = "layer"
    context: Context
    family: Family | None
    _inner: Any
    _layer: "LayerBase | None"
    _function: FlowFunction | None
    _is_leaf: bool

    def __init_subclass__(cls) -> None:
        """Check the flows of other people's layers, also if they come from a class beside this one."""
        super().__init_subclass__()
        if not cls.flow.__module__.startswith("stkai.") and not hasattr(cls.flow, "__wrapped__"):
            setattr(cls, "flow", checked(cls.flow))  # noqa: B010 - a method, to type checkers

    def flow(self, request: httpx.Request, attempt: Attempt) -> Flow:
        """This layer's work for one pass of a request; by default the function given to the constructor."""
        if self._function is not None:
            return self._function(self, request, attempt)
        return self.forward(request, attempt)

    def forward(self, request: httpx.Request, attempt: Attempt) -> Flow:
        """Send the request to the next layer, or to the wire. Call it as `yield from self.forward(...)`."""
        if self._layer is not None:
            return (yield from self._layer.flow(request, attempt))
        if not self._is_leaf and request.extensions.get(ATTEMPT) is not attempt:
            request = copy_request(request, extensions={**request.extensions, ATTEMPT: attempt})
        if attempt.is_told and self.context.hears(DEBUG):
            return (yield from self._send_observed(request, attempt))
        response: httpx.Response = yield Send(self._inner, request, attempt)
        return response

    def _set_up(
        self, inner: Any, kind: type, context: Context | None, function: FlowFunction | None, *, joins: bool
    ) -> None:
        if not isinstance(inner, alike(kind)):
            msg = f"{type(self).__name__} needs an httpx.{kind.__name__} inside, not {_describe(inner)}"
            raise ConfigurationError(msg)
        if function is not None:
            check_flow(self.name, function)
        self._inner = inner
        self._function = None if function is None else checked(function)
        self._layer = inner if joins else None
        if joins and type(self).forward is LayerBase.forward:
            # Skip this method: each request would call it once per layer.
            vars(self)["forward"] = inner.flow
        # With no layer further in, nobody needs the attempt, so the request need not be copied.
        self._is_leaf = bool(getattr(inner, "is_leaf", type(inner) in alike(*_LEAVES)))
        self.family = family_of_wire(inner)
        self.context = context or Context()

    def _send_observed(self, request: httpx.Request, attempt: Attempt) -> Flow:
        """Send to the wire, and report the start and the end of the attempt."""
        from ..events import AttemptStarted

        context = self.context
        start = context.clock.monotonic()
        info = attempt.info
        try:
            started = AttemptStarted(call=info, resend_count=attempt.number - 1)
            context.emit(started)
            if started.headers:
                headers = request.headers.copy()
                headers.update(started.headers)
                request = copy_request(request, headers=headers)
            response: httpx.Response = yield Send(self._inner, request, attempt)
        except BaseException as error:
            self._attempted(info, start, error=type(error).__name__)
            raise
        try:
            self._attempted(info, start, status=response.status_code)
        except BaseException:  # An interrupt, which came while a listener was told.
            yield Close(response)
            raise
        return response

    def _attempted(
        self, info: "CallInfo", start: float, *, status: int | None = None, error: str | None = None
    ) -> None:
        from ..events import AttemptFinished

        seconds = self.context.clock.monotonic() - start
        self.context.emit(AttemptFinished(call=info, status=status, error=error, seconds=seconds))

    def _begin(self, request: httpx.Request) -> Call:
        """The call that begins with this request."""
        family = self.family
        if family is not None and not isinstance(request, family.Request):
            raise _foreign(family)
        return Call.start(request, self.context.clock.monotonic())

    def _started(self, attempt: Attempt) -> None:
        from ..events import CallStarted

        self.context.emit(CallStarted(call=attempt.info))

    def _failed(self, attempt: Attempt, error: BaseException) -> None:
        """Add the request to its error, and report that the call has ended."""
        call = attempt.call
        if isinstance(error, alike(httpx.RequestError)):
            error.request = call.request
            adopt(error, call.request)
        if isinstance(error, Exception) and not any(
            note.startswith(_NOTE) for note in getattr(error, "__notes__", ())
        ):
            number = attempt.record.attempts
            error.add_note(f"{_NOTE}{call.method} {call.host}: {number} attempt{'s' * (number != 1)}")
        if attempt.is_told:
            self._finished(attempt, self.context.clock.monotonic(), error=type(error).__name__)

    def _finished(
        self, attempt: Attempt, now: float, *, status: int | None = None, error: str | None = None
    ) -> None:
        from ..events import CallFinished

        record = attempt.record
        self.context.emit(
            CallFinished(
                call=Attempt(attempt.call, record.attempts, record).info,
                status=status,
                error=error,
                attempts=record.attempts,
                seconds=now - attempt.call.started,
            )
        )

    def __str__(self) -> str:
        return f"{self.name} > {self._inner if isinstance(self._inner, LayerBase) else 'wire'}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}{self.describe()}>"

    def describe(self) -> str:
        """The current state of this layer and those inside it, to show after their names; empty if there is none."""
        return self._inner.describe() if isinstance(self._inner, LayerBase) else ""


class LayerTransport(LayerBase, httpx.BaseTransport):
    """Base class of the sync layers; with `flow=` it is a complete layer.

    Override `flow`, a generator that sends inward with `yield from self.forward(request, attempt)`.

    Args:
        inner: the next layer, or the wire.
        flow: a function to use as the `flow` method, called as `flow(layer, request, attempt)`.
        context: the stack's clock, random numbers and listener.
        name: the layer's name; by default that of its class.

    Raises:
        ConfigurationError: `inner` is not a sync transport.
    """

    def __init__(
        self,
        inner: httpx.BaseTransport,
        flow: FlowFunction | None = None,
        *,
        context: Context | None = None,
        name: str | None = None,
    ) -> None:
        # A subclass that overrides httpx's own method must see every request there.
        joins = (
            isinstance(inner, LayerTransport) and type(inner).handle_request is LayerTransport.handle_request
        )
        if name is not None:
            self.name = name
        self._set_up(inner, httpx.BaseTransport, context, flow, joins=joins)

    @property
    def inner(self) -> httpx.BaseTransport:
        """The next layer, or the wire; fixed when the layer is made."""
        inner: httpx.BaseTransport = self._inner
        return inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        attempt = request.extensions.get(ATTEMPT)
        if attempt is not None:
            return drive(self.flow(request, attempt), attempt, self.context.clock)
        return self.carry_out(self._begin(request), self.flow)

    def carry_out(self, call: Call, flow: Callable[[httpx.Request, Attempt], Flow]) -> httpx.Response:
        """Carry out a whole call with this flow: report its start and end to the listener, and attach its record."""
        attempt, context = Attempt(call), self.context
        try:
            if not context.hears(INFO):
                attempt.is_told = False
            elif context.hears(DEBUG):
                self._started(attempt)
            response = drive(flow(call.request, attempt), attempt, context.clock)
        except BaseException as error:
            self._failed(attempt, error)
            raise
        try:
            now = context.clock.monotonic()
            attempt.finish(response, now)
            if attempt.is_told:
                self._finished(attempt, now, status=response.status_code)
        except BaseException:  # An interrupt, which came while a listener was told.
            close_response(response)
            raise
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

    def __getattr__(self, name: str) -> Any:
        raise _missing(self, name, _ASYNC_ONLY, "httpx.AsyncClient", "build_async_transport()")


class AsyncLayerTransport(LayerBase, httpx.AsyncBaseTransport):
    """Base class of the async layers, on asyncio and trio; takes the same flows as `LayerTransport`.

    Raises:
        ConfigurationError: `inner` is not an async transport.
    """

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        flow: FlowFunction | None = None,
        *,
        context: Context | None = None,
        name: str | None = None,
    ) -> None:
        # A subclass that overrides httpx's own method must see every request there.
        joins = (
            isinstance(inner, AsyncLayerTransport)
            and type(inner).handle_async_request is AsyncLayerTransport.handle_async_request
        )
        if name is not None:
            self.name = name
        self._set_up(inner, httpx.AsyncBaseTransport, context, flow, joins=joins)

    @property
    def inner(self) -> httpx.AsyncBaseTransport:
        """The next layer, or the wire; fixed when the layer is made."""
        inner: httpx.AsyncBaseTransport = self._inner
        return inner

    def handle_async_request(self, request: httpx.Request) -> Coroutine[Any, Any, httpx.Response]:
        attempt = request.extensions.get(ATTEMPT)
        if attempt is not None:
            return adrive(self.flow(request, attempt), attempt, self.context.clock)
        return self.carry_out(self._begin(request), self.flow)

    async def carry_out(self, call: Call, flow: Callable[[httpx.Request, Attempt], Flow]) -> httpx.Response:
        """Carry out a whole call with this flow: report its start and end to the listener, and attach its record."""
        attempt, context = Attempt(call), self.context
        try:
            if not context.hears(INFO):
                attempt.is_told = False
            elif context.hears(DEBUG):
                self._started(attempt)
            response = await adrive(flow(call.request, attempt), attempt, context.clock)
        except BaseException as error:
            self._failed(attempt, error)
            raise
        try:
            now = context.clock.monotonic()
            attempt.finish(response, now)
            if attempt.is_told:
                self._finished(attempt, now, status=response.status_code)
        except BaseException:  # An interrupt, which came while a listener was told.
            await aclose_response(response)
            raise
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

    def __getattr__(self, name: str) -> Any:
        raise _missing(self, name, _SYNC_ONLY, "httpx.Client", "build_transport()")


def _foreign(family: Family) -> ConfigurationError:
    """The error for a request that the wire could not read."""
    name = family.__name__
    return ConfigurationError(
        f"the stack's wire is for {name}, but this request is not from {name}: build the stack on a wire of the"
        " client's own package, or on no wire, as build_transport() does by default"
    )


def _missing(
    layer: LayerBase, name: str, wanted: frozenset[str], client: str, builder: str
) -> AttributeError:
    msg = f"{type(layer).__name__!r} object has no attribute {name!r}"
    if name in wanted:
        msg += f": an {client} needs the other kind of stack, such as stkai.{builder}"
    return AttributeError(msg, name=name, obj=layer)


def _describe(inner: object) -> str:
    kind = type(inner).__name__
    if isinstance(inner, alike(httpx.AsyncBaseTransport)):
        return f"the async {kind}: build the async stack, or pass a sync wire such as httpx.HTTPTransport()"
    if isinstance(inner, alike(httpx.BaseTransport)):
        return (
            f"the sync {kind}: build the sync stack, or pass an async wire such as httpx.AsyncHTTPTransport()"
        )
    return f"{inner!r}" if isinstance(inner, type) else f"a {kind}"
