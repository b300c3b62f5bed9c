"""The recipe of a layer. For authors of layers: how to make a response, and how to test a flow."""

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import httpx

from .._checks import safe_repr
from .._errors import ConfigurationError, InvalidArgumentError
from .._families import family_of
from ._base import AsyncLayerTransport, LayerTransport
from ._layer_checks import check_flow
from ._operations import Flow, Operation, Run, Send


class Layer:
    """A recipe for one layer of a stack: a name, and how to wrap an inner transport, sync and async.

    Your own layer is one function for sync, asyncio and trio: `Layer("name", flow)`.

    Args:
        name: unique in a stack.
        flow: a generator function, called as `flow(layer, request, attempt)`, which sends inward with
            `yield from layer.forward(request, attempt)`. If `asynchronous` is given as well, this makes the sync
            transport instead, called as `flow(inner, context=context)`.
        asynchronous: makes the async transport, in the same way.
        policy: what the layer follows; two stacks that hold the same object share its state.

    Raises:
        ConfigurationError: the name is not a string, or there is nothing to call.
    """

    __slots__ = ("asynchronous", "name", "policy", "sync")

    def __init__(
        self,
        name: str,
        flow: Callable[..., Any] | None = None,
        asynchronous: Callable[..., httpx.AsyncBaseTransport] | None = None,
        policy: object = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"a layer needs a name, such as 'audit', not {name!r}")
        if not callable(flow) or not (asynchronous is None or callable(asynchronous)):
            msg = f"the layer {name!r} needs one flow, or how to make both its sync and its async transport"
            raise ConfigurationError(msg)
        self.name, self.policy = name, policy
        self.sync: Callable[..., httpx.BaseTransport] = flow
        if asynchronous is None:
            check_flow(name, flow)
            self.sync = partial(LayerTransport, flow=flow, name=name)
            asynchronous = partial(AsyncLayerTransport, flow=flow, name=name)
        self.asynchronous: Callable[..., httpx.AsyncBaseTransport] = asynchronous

    def __str__(self) -> str:
        return self.name

    @safe_repr
    def __repr__(self) -> str:
        return f"<Layer {self.name}>"


def recipe(sync: Any, asynchronous: Any, policy: object, **options: Any) -> Layer:
    """The recipe of one of stkai's own layers, from the classes of its two transports."""
    options["policy"] = policy
    return Layer(sync.name, partial(sync, **options), partial(asynchronous, **options), policy)


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
    """Run a flow by hand, to test it without a transport: nothing is sent, and nothing waits.

        operations, response = play(layer.flow(request, attempt), httpx.ConnectError("refused"), None, answer)

    Args:
        flow: what the `flow` method of a layer, or a flow function, returned.
        outcomes: the outcome of each of its operations, one by one: a response for a `Send`, the value of a
            `Run`, None for the others. An exception is raised in the flow. Missing ones at the end count as None,
            except for a `Send` or a `Run`.

    Returns:
        The operations that the flow asked for, and the response that it returned. What the flow raises is raised.

    Raises:
        ConfigurationError: the flow is not a generator.
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
