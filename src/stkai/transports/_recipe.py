"""The recipe of a layer: how a stack makes its transport, sync or async."""

from collections.abc import Callable
from functools import partial
from typing import Any

import httpx

from .._checks import safe_repr
from .._errors import ConfigurationError
from ._layer_checks import check_flow
from ._layer_transport import AsyncLayerTransport, LayerTransport


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
