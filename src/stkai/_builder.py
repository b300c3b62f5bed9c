"""Combines layers: a `StackBuilder` holds recipes, outermost first; the `build_*` functions make the usual stacks.

    retry  >  auth  >  adaptive | token_bucket | limiter  >  wire

docs/order.md explains this order.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict, TypeVar, Unpack, cast

import httpx

from ._checks import safe_repr
from ._client import AsyncHttpClient, HttpClient
from ._clock import Clock
from ._config import STKAI, models
from ._errors import ConfigurationError
from ._families import AsyncTransport, AsyncWire, SyncWire, Transport, alike
from ._lazy import LateModule
from ._log import Listener, events, listener_of  # noqa: F401 - the hints of `StackBuilder` name events
from .transports._context import Context
from .transports._options import UNSET
from .transports._recipe import Layer

if TYPE_CHECKING:
    from . import _standard
    from ._config.models import HttpConfig, RateLimitConfig, Settings
    from .limiters import Limiter, PerHost, PerKey
    from .transports._auth import AuthProvider
    from .transports._auth.bearer import BearerAuth
    from .transports._limits.metering import Estimate, Settle
    from .transports._retry.policy import RetryPolicy

    Limiters = list[Any] | tuple[Any, ...]
    """Several limits at once. Not a Sequence: that would accept any string."""
else:
    _standard = LateModule("stkai._standard")

F = TypeVar("F", bound=Callable[..., Any])

_PLAIN: Final = Layer("call", lambda layer, request, attempt: layer.forward(request, attempt))

_SYNC: Final = (
    httpx.BaseTransport, "httpx.HTTPTransport(), or call build_async() or build_async_client()", "a LayerTransport",
)  # fmt: skip
_ASYNC: Final = (
    httpx.AsyncBaseTransport, "httpx.AsyncHTTPTransport(), or call build() or build_client()", "an AsyncLayerTransport",
)  # fmt: skip
"""The base class of a stack's transports, and examples of a wire and of a layer's transport."""


class StackOptions(TypedDict, total=False):
    """The arguments of the `build_*` functions besides `transport`."""

    auth: "AuthProvider | BearerAuth | Literal['auto'] | None"
    rate_limit: (
        "Literal['token_bucket', 'adaptive'] | RateLimitConfig | Limiter | PerHost | PerKey | Limiters | None"
    )
    retry: "RetryPolicy | None"
    listener: "Listener | Sequence[Listener] | None"
    clock: "Clock | None"
    random: "Callable[[], float] | None"
    cost: "Estimate | None"
    settle: "Settle | None"


DEFAULTS: Final = {"auth": "auto", "rate_limit": UNSET, "retry": UNSET}
"""The defaults that are not None; for `UNSET`, the settings decide."""

_TRANSPORT: Final = """
        transport: the wire; by default one of the package of each request (httpx or httpx2) that honours proxies, with
            the verification and limits of the settings."""

_ARGUMENTS: Final = """
        auth: a token provider, such as `StaticToken(token)`; a `BearerAuth`; None; or "auto": the settings' token;
            otherwise StackSpot CLI if it is installed and no other wire is given; otherwise the settings' credentials.
        rate_limit: "token_bucket" or "adaptive" with the numbers of the settings, a `RateLimitConfig`, a limiter
            (`TokenBucket`, `AimdLimiter`, `InFlight`, `PerHost`, `PerKey`, or a `Limiter` of your own), which other
            stacks may share, a list of several, or None. By default, as the settings say.
        retry: a `RetryPolicy`, or None to send once. By default, as the settings say.
        listener: a function that is called with every event, in addition to the default log; or a list of the only
            functions to call.
        clock: where the stack gets its time from.
        random: draws numbers in [0, 1), for jitter.
        cost: estimates what a request will cost, in units, for a limiter with `max_cost`.
        settle: reads from the answer what the request has cost; returns None if that is unknown.

    Raises:
        ConfigurationError: (a ValueError) the settings or the arguments cannot be used; the message says what to do.
        TypeError: there is no such argument.
    """


def describe_arguments(*, with_transport: bool) -> str:
    """The part of a docstring that describes the arguments."""
    return inspect.cleandoc(f"\n    Args:{_TRANSPORT if with_transport else ''}{_ARGUMENTS}")


def _takes_stack_options(function: F) -> F:
    """Let `help()` show every keyword of `StackOptions` and what it means."""
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    # TypedDict turns strings into ForwardRefs, which are hard to read.
    parameters += [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name), annotation=kind.__forward_arg__
        )
        for name, kind in StackOptions.__annotations__.items()
    ]
    parameters.sort(key=lambda each: (each.kind, each.name == "transport"))
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    arguments = describe_arguments(with_transport="transport" in signature.parameters)
    function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{arguments}"
    return function


class StackBuilder:
    """An immutable list of layers, outermost first. `str()` shows it; `build` and `build_async` put it on a wire.

    Args:
        layers: recipes, from the factories in `stkai.transports` or your own `Layer`.
        clock: where the layers get their time from.
        listener: a function that is called with every event of the stack, in addition to the default log; or a list of
            the only functions to call.
        random: draws numbers in [0, 1).

    Raises:
        ConfigurationError: two layers have the same name, or something in the list is not a layer.
    """

    def __init__(
        self,
        layers: Iterable[Layer] = (),
        *,
        clock: Clock | None = None,
        listener: Listener | Sequence[Listener] | None = None,
        random: Callable[[], float] | None = None,
    ) -> None:
        self.layers = _checked(layers)
        self.context = Context(clock=clock, listener=listener_of(listener), random=random)
        self.by_cli = False
        """Whether StackSpot CLI is to be the wire, and to sign the requests."""
        self._http: HttpConfig | None = None
        """The settings of the default wire; None for those of `STKAI.config`."""

    @classmethod
    @_takes_stack_options
    def standard(cls, settings: "models.Settings | None" = None, **options: Unpack[StackOptions]) -> Self:
        """The standard stack, to which layers can be added: `StackBuilder.standard().outside("retry", mine).build()`.

        If StackSpot CLI signs the requests, it is the wire, and there is no layer `auth`. `settings` are by default
        those of `STKAI.config`.
        """
        return cls._made_by("StackBuilder.standard", options, settings)

    @classmethod
    def _made_by(
        cls, caller: str, options: StackOptions, settings: "Settings | None" = None, *, own_wire: bool = False
    ) -> Self:
        _standard.check_options(caller, options, StackOptions.__annotations__)
        settings = STKAI.config if settings is None else settings
        if not hasattr(settings, "retry"):
            raise ConfigurationError(
                f"{caller}(settings) takes settings, such as STKAI.config, not a {type(settings).__name__};"
                " pass everything else by name, such as rate_limit='adaptive'"
            )
        layers, by_cli = _standard.standard_layers(settings, {**DEFAULTS, **options}, own_wire=own_wire)
        # If there are no others, a layer that does nothing enforces deadlines, attaches records and reports calls.
        stack = cls(
            layers or (_PLAIN,),
            clock=options.get("clock"),
            listener=options.get("listener"),
            random=options.get("random"),
        )
        stack.by_cli, stack._http = by_cli, settings.http
        return stack

    def layer(self, layer: Layer) -> Self:
        """Add a layer inside all others, next to the wire."""
        return self._insert(len(self.layers), layer)

    def outside(self, name: str, layer: Layer) -> Self:
        """Add a layer just outside the layer `name`."""
        return self._insert(self._find(name), layer)

    def inside(self, name: str, layer: Layer) -> Self:
        """Add a layer just inside the layer `name`."""
        return self._insert(self._find(name) + 1, layer)

    def _find(self, name: str) -> int:
        names = [layer.name for layer in self.layers]
        if name not in names:
            msg = f"there is no layer {name!r} in the stack; it has: {', '.join(names) or 'none'}"
            raise ConfigurationError(msg)
        return names.index(name)

    def _insert(self, place: int, layer: Layer) -> Self:
        other = copy(self)
        other.layers = _checked((*self.layers[:place], layer, *self.layers[place:]))
        return other

    def build(self, wire: SyncWire | None = None) -> Transport:
        """The stack around a sync wire; the default wire honours proxies and `STKAI_HTTP_*`.

        Raises:
            ConfigurationError: the wire is async or not a transport, or StackSpot CLI was to sign.
        """
        return cast(Transport, self._around(wire, is_async=False))

    def build_async(self, wire: AsyncWire | None = None) -> AsyncTransport:
        """The stack around an async wire; the default wire honours proxies and `STKAI_HTTP_*`.

        Raises:
            ConfigurationError: the wire is sync or not a transport, or StackSpot CLI was to sign.
        """
        return cast(AsyncTransport, self._around(wire, is_async=True))

    def _around(self, wire: Any, *, is_async: bool) -> Any:
        """All layers around a wire, by default that of the settings."""
        kind, a_wire, a_layer = _ASYNC if is_async else _SYNC
        if wire is None:
            wire = _standard.default_wire(self._http, by_cli=self.by_cli, is_async=is_async)
        _require(wire, kind, "the wire", a_wire)
        if self.by_cli:
            _standard.check_signed(wire, self.layers)
        transport = wire
        for layer in reversed(self.layers):
            make = layer.asynchronous if is_async else layer.sync
            transport = make(transport, context=self.context)
            _require(transport, kind, f"what the layer {layer.name!r} makes", a_layer)
        return transport

    def __str__(self) -> str:
        return " > ".join([*(layer.name for layer in self.layers), "wire"])

    @safe_repr
    def __repr__(self) -> str:
        return f"<StackBuilder {self}>"


def _checked(given: Iterable[Layer]) -> tuple[Layer, ...]:
    if not isinstance(given, Iterable):
        msg = f"a stack takes a list of layers, such as [stkai.transports.retry()], not {given!r}"
        raise ConfigurationError(msg)
    layers = tuple(given)
    names = set[str]()
    for layer in layers:
        if not isinstance(layer, Layer):
            msg = f"a stack takes layers, such as stkai.transports.retry(...), not {layer!r}"
            raise ConfigurationError(msg)
        if layer.name in names:
            raise ConfigurationError(
                f"the stack has two layers named {layer.name!r}; leave one out, or rename it: Layer(name=...)"
            )
        names.add(layer.name)
    return layers


def _require(transport: object, kind: type, what: str, example: str) -> None:
    if not isinstance(transport, alike(kind)):
        msg = f"{what} must be an httpx.{kind.__name__}, such as {example}; not {transport!r}"
        raise ConfigurationError(msg)


@_takes_stack_options
def build_transport(*, transport: SyncWire | None = None, **options: Unpack[StackOptions]) -> Transport:
    """The standard stack as one transport, for an `httpx.Client` or `httpx2.Client`, or for its `mounts`."""
    return StackBuilder._made_by("build_transport", options, own_wire=transport is not None).build(transport)  # noqa: SLF001


@_takes_stack_options
def build_async_transport(
    *, transport: AsyncWire | None = None, **options: Unpack[StackOptions]
) -> AsyncTransport:
    """The standard stack for async clients, on asyncio and trio; StackSpot CLI cannot sign for them."""
    return StackBuilder._made_by("build_async_transport", options, own_wire=True).build_async(transport)  # noqa: SLF001


@_takes_stack_options
def build_client(*, transport: SyncWire | None = None, **options: Unpack[StackOptions]) -> HttpClient:
    """A client with `get`, `post` and `post_stream` on top of the standard stack."""
    stack = StackBuilder._made_by("build_client", options, own_wire=transport is not None)  # noqa: SLF001
    return HttpClient(stack.build(transport))


@_takes_stack_options
def build_async_client(
    *, transport: AsyncWire | None = None, **options: Unpack[StackOptions]
) -> AsyncHttpClient:
    """An async client with `get`, `post` and `post_stream` on top of the standard stack, on asyncio and trio."""
    stack = StackBuilder._made_by("build_async_client", options, own_wire=True)  # noqa: SLF001
    return AsyncHttpClient(stack.build_async(transport))
