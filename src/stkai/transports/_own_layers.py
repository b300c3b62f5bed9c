"""For authors of layers: checks that name the mistake in a flow, a response of one's own, and a way to test a flow."""

import inspect
from collections.abc import Callable, Generator
from functools import wraps
from typing import Any, Final

import httpx

from .._errors import ConfigurationError, InvalidArgumentError
from .._families import alike, family_of
from ._call import Attempt
from ._operations import Flow, Operation, Run, Send, WrongOperationError

__all__ = ["alike", "check_flow", "checked", "play", "response_like"]

FlowFunction = Callable[[Any, httpx.Request, Attempt], Flow]
"""A layer's work as a function of the layer, the request and the attempt."""

_FORM: Final = (
    "a flow is a generator function that ends with `return (yield from layer.forward(request, attempt))`"
)
_FORGOTTEN: Final = "write `yield from` before forward(request, attempt)"


def check_flow(name: str, flow: object) -> None:
    """Refuse what can be seen to be no flow before the first request.

    Raises:
        ConfigurationError: it is not a function of three arguments, or it is async.
    """
    if not callable(flow):
        raise ConfigurationError(
            f"a flow must be a function (layer, request, attempt), and that of the layer {name!r} is {flow!r}"
        )
    if inspect.iscoroutinefunction(flow) or inspect.isasyncgenfunction(flow):
        raise _wrong(name, "is async, and nothing awaits it", f"{_FORM}; one serves sync and async clients")
    try:
        signature = inspect.signature(flow)
    except (TypeError, ValueError):  # Some callables have none to show.
        return
    try:
        signature.bind("layer", "request", "attempt")
    except TypeError as error:
        raise _wrong(
            name,
            f"cannot be called as flow(layer, request, attempt): {error}",
            "give it these three parameters",
        ) from error


def checked(flow: FlowFunction) -> FlowFunction:
    """The same flow, whose mistakes are ConfigurationErrors that name the layer and the cure."""

    @wraps(flow)
    def run(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        try:
            made: Any = flow(layer, request, attempt)
            if not isinstance(made, Generator):
                raise _no_generator(layer.name, made)
            response = yield from made
        except WrongOperationError as error:
            forgotten = isinstance(error.operation, Generator)
            cure = (
                _FORGOTTEN if forgotten else "it may yield operations of stkai.transports, such as Sleep(1.0)"
            )
            raise _wrong(layer.name, f"yielded {_kind(error.operation)}", cure) from None
        except AttributeError as error:
            if not isinstance(error.obj, Generator):
                raise
            raise _wrong(layer.name, f"used a generator as a response ({error})", _FORGOTTEN) from error
        if not isinstance(response, family_of(request).Response):
            raise _no_response(layer.name, response, request)
        return response

    return run


def _no_generator(name: str, made: object) -> ConfigurationError:
    if inspect.iscoroutine(made):
        made.close()
    return _wrong(name, f"returned {_kind(made)} where a generator was expected", _FORM)


def _no_response(name: str, answer: object, request: httpx.Request) -> ConfigurationError:
    package = family_of(request).__name__
    cure = (
        f"return the response of `yield from layer.forward(request, attempt)`, or response_like(request, 200), which is"
        f" one of {package}"
    )
    if isinstance(answer, Generator):
        cure = _FORGOTTEN
    elif isinstance(answer, alike(httpx.Response)):
        cure = f"the request is one of {package}, and so must the answer be: response_like(request, 200)"
    return _wrong(name, f"ended with {_kind(answer)} instead of a response", cure)


def _wrong(name: str, what: str, cure: str) -> ConfigurationError:
    return ConfigurationError(f"the flow of the layer {name!r} {what}: {cure}")


def _kind(thing: object) -> str:
    if thing is None:
        return "None"
    kind = type(thing)
    package = kind.__module__.partition(".")[0]
    return f"a value of type {kind.__name__ if package == 'builtins' else f'{package}.{kind.__name__}'}"


def response_like(
    request: httpx.Request,
    status: int,
    *,
    headers: Any = None,
    content: str | bytes | None = None,
    json: Any = None,
) -> httpx.Response:
    """A response of your own to a request, of the package that made the request: httpx or httpx2.

    Args:
        request: the request that the layer was given.
        status: the status code.
        headers: as for `httpx.Response`.
        content: the body.
        json: the body, to be encoded as JSON; instead of `content`.
    """
    return family_of(request).Response(status, headers=headers, content=content, json=json, request=request)


def play(flow: Flow, *outcomes: Any) -> tuple[list[Operation], httpx.Response]:
    """Play a flow by hand, to test it without a transport: nothing is sent, and nothing waits.

        operations, response = play(layer.flow(request, attempt), httpx.ConnectError("refused"), None, answer)

    Args:
        flow: what the `flow` method of a layer, or a flow function, returned.
        outcomes: the outcome of each of its operations, one by one: a response for a `Send`, the value of a
            `Run`, None for the others. An exception is raised in the flow. What is missing at the end counts as None,
            except for a `Send` or a `Run`.

    Returns:
        The operations that the flow asked for, and the response that it returned. What the flow raises is raised.

    Raises:
        ConfigurationError: the flow is no generator.
        InvalidArgumentError: (an AssertionError) there are too few outcomes, or too many.
    """
    if not isinstance(flow, Generator):
        raise ConfigurationError(
            f"play() takes a running flow, such as layer.flow(request, attempt), not {flow!r}"
        )
    operations: list[Operation] = []
    try:
        operation = flow.send(None)
        while True:
            operations.append(operation)
            number = len(operations)
            if number > len(outcomes) and isinstance(operation, Send | Run):
                flow.close()
                raise InvalidArgumentError(
                    f"operation number {number} is a {type(operation).__name__}, and there are {len(outcomes)} outcomes"
                )
            outcome = outcomes[number - 1] if number <= len(outcomes) else None
            operation = flow.throw(outcome) if isinstance(outcome, BaseException) else flow.send(outcome)
    except StopIteration as end:
        if len(operations) < len(outcomes):
            raise InvalidArgumentError(
                f"the flow ended after {len(operations)} operations, and there are {len(outcomes)} outcomes"
            ) from None
        response: httpx.Response = end.value
        return operations, response
