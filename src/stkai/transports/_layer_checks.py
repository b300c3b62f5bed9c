"""What a layer knows and checks about its flow and the transport inside it; the messages say what to do instead."""

import inspect
import sys
from collections.abc import Callable, Generator
from functools import wraps
from importlib import import_module
from typing import Any, Final

import httpx

from .._errors import ConfigurationError, InvalidArgumentError
from .._families import Family, alike, family_of
from ._call import Attempt
from ._operations import Flow, WrongOperationError

_LEAVES: Final = (httpx.HTTPTransport, httpx.AsyncHTTPTransport, httpx.MockTransport)
_SOUND: Final = (*_LEAVES, httpx.ASGITransport, httpx.WSGITransport)
_METHODS: Final = frozenset({"handle_request", "handle_async_request"})
_AS_TEXT: Final[dict[str, Any]] = (
    {} if sys.version_info < (3, 14) else {"annotation_format": import_module("annotationlib").Format.STRING}
)


def is_leaf(wire: Any) -> bool:
    """Whether no layer of ours is further inside, so that the request need not carry its attempt."""
    return bool(getattr(wire, "is_leaf", type(wire) in alike(*_LEAVES)))


def is_sound(wire: Any, kind: type | None = None) -> bool:
    """Whether a ConnectError or ConnectTimeout of the wire, as a transport of this kind, means that nothing was sent.

    True for the transports of httpx and httpx2, for ours, and for subclasses that do not send in their own way.
    Others raise these errors for a connection that broke after the request.
    """
    methods = _METHODS if kind is None else _METHODS & vars(kind).keys()
    for base in type(wire).__mro__:
        if methods & vars(base).keys():
            return base in alike(*_SOUND) or base.__module__.partition(".")[0] == "stkai"
    return False


def check_inner(layer: object, inner: object, kind: type) -> None:
    """Refuse an `inner` that is not a transport of this kind."""
    if not isinstance(inner, alike(kind)):
        msg = f"{type(layer).__name__} needs an httpx.{kind.__name__} inside, not {inner!r}"
        raise ConfigurationError(msg)


def foreign(family: Family) -> ConfigurationError:
    """The error for a request that the wire could not read."""
    name = family.__name__
    return ConfigurationError(
        f"the stack's wire is for {name}, but this request is not from {name}: build the stack on a wire of the"
        " client's own package, or on no wire, as build_transport() does by default"
    )


def of_other_kind(*, is_async: bool) -> InvalidArgumentError:
    """The error for a request with a body that only the other kind of client can send."""
    mine, needed = ("an async", "an async generator") if is_async else ("a sync", "a plain generator")
    return InvalidArgumentError(
        f"the request's body is for the other kind of client: {mine} client sends bytes or {needed}"
    )


def not_initialised(layer: object) -> AttributeError:
    """The error for a layer of the user's own that lacks what the base constructor sets."""
    return AttributeError(
        f"{type(layer).__name__} is not initialised: its __init__ must call super().__init__(inner)"
    )


class OfOtherKind:
    """A method that only the other kind of transport has: says which stack to build.

    A layer has no `__getattr__` for that: with one, Python reads all other attributes much more slowly.
    """

    def __init__(self, client: str, builder: str) -> None:
        self._advice = f"an {client} needs the other kind of stack, such as stkai.{builder}"

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, layer: object, kind: type) -> Any:
        msg = f"{kind.__name__!r} object has no attribute {self._name!r}: {self._advice}"
        raise AttributeError(msg, name=self._name, obj=layer)


FlowFunction = Callable[[Any, httpx.Request, Attempt], Flow]
"""A layer's work as a function of the layer, the request and the attempt."""

_FORM: Final = (
    "a flow is a generator function; it yields operations of stkai.transports, such as Sleep(1.0), and ends with"
    " `return (yield from layer.forward(request, attempt))` or with response_like(request, 200)"
)


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function; its annotations may use names that only type checkers import (PEP 649)."""
    return inspect.signature(function, **_AS_TEXT)


def check_flow(name: str, flow: FlowFunction) -> FlowFunction:
    """Return the flow; reject what is recognisably not a flow before the first request is sent."""
    if not callable(flow):
        raise _invalid_flow(name, f"is {flow!r}")
    if inspect.iscoroutinefunction(flow) or inspect.isasyncgenfunction(flow):
        raise _invalid_flow(name, "is async, and nothing awaits it")
    try:
        signature_of(flow).bind("layer", "request", "attempt")
    except ValueError:  # Some callables have no signature to show.
        pass
    except TypeError as error:
        raise _invalid_flow(name, f"cannot be called as flow(layer, request, attempt): {error}") from error
    return flow


def with_clear_errors(flow: FlowFunction) -> FlowFunction:
    """The same flow, which raises ConfigurationErrors that name the layer and the fix."""

    @wraps(flow)
    def run(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        try:
            made: Any = flow(layer, request, attempt)
            if not isinstance(made, Generator):
                if inspect.iscoroutine(made):
                    made.close()
                raise _invalid_flow(layer.name, f"returned {_kind(made)} instead of a generator")
            response = yield from made
        except WrongOperationError as error:
            raise _invalid_flow(layer.name, f"yielded {_kind(error.operation)}") from None
        except AttributeError as error:
            if not isinstance(error.obj, Generator):
                raise
            raise _invalid_flow(layer.name, f"used a generator as a response ({error})") from error
        package = family_of(request)
        if not isinstance(response, package.Response):
            raise _invalid_flow(
                layer.name, f"ended with {_kind(response)} instead of an {package.__name__}.Response"
            )
        return response

    return run


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"


def _invalid_flow(name: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"the flow of the layer {name!r} {what}: {_FORM}")
