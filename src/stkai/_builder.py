"""Puts layers together: `StackBuilder` holds recipes, outermost first; the `build_*` functions make the usual stacks.

    retry  >  auth  >  adaptive | token_bucket  >  wire

Retry is outermost, so that each attempt pays for a permit and carries a fresh token. Auth is outside the limiter:
permits spent before a slow token refresh would leave together after it, and a re-send after a 401 would not be
metered.
"""

import math
from collections.abc import Callable, Iterable
from copy import copy
from typing import TYPE_CHECKING, Any, Self, cast

import httpx

from ._client import AsyncHttpClient, HttpClient
from ._clock import Clock
from ._config.stkai import STKAI
from ._errors import ConfigurationError
from ._families import AsyncTransport, AsyncWire, SyncWire, Transport, alike
from ._log import Listener
from ._options import UNSET
from .transports._base import Context, Layer

if TYPE_CHECKING:
    from ._config.models import Settings
    from ._standard import Auth, Parts, RateLimit, Retry


class StackBuilder:
    """An immutable list of layers, outermost first. `str()` shows it; `build` and `build_async` put it on a wire.

    Args:
        layers: recipes, from the factories in `stkai.transports` or your own `Layer`.
        clock: where the layers get their time from.
        listener: called with every event of the stack.
        random: draws numbers in [0, 1).

    Raises:
        ConfigurationError: two layers have one name, or tokens could expire while requests wait for a permit.
    """

    def __init__(
        self,
        layers: Iterable[Layer] = (),
        *,
        clock: Clock | None = None,
        listener: Listener | None = None,
        random: Callable[[], float] | None = None,
    ) -> None:
        given: dict[str, Any] = {"clock": clock, "listener": listener, "random": random}
        self.context = Context(**{name: value for name, value in given.items() if value is not None})
        self.layers = _checked(layers)
        self._parts: Parts | None = None

    def _with(self, *layers: Layer) -> Self:
        other = copy(self)
        other.layers = _checked(layers)
        return other

    @classmethod
    def standard(
        cls,
        settings: "Settings | None" = None,
        *,
        clock: Clock | None = None,
        listener: Listener | None = None,
        random: Callable[[], float] | None = None,
    ) -> Self:
        """The standard stack as the settings say; by default those of `STKAI.config`.

        Where StackSpot CLI signs the requests, it is the wire, and there is no layer `auth`.
        """
        from ._standard import Parts

        parts = Parts.choose(settings or STKAI.config, clock=clock)
        stack = cls(parts.layers, clock=clock, listener=listener, random=random)
        stack._parts = parts
        return stack

    def layer(self, layer: Layer) -> Self:
        """Add a layer inside all others, next to the wire."""
        return self._with(*self.layers, layer)

    def outside(self, name: str, layer: Layer) -> Self:
        """Add a layer just outside the one named `name`."""
        place = self._find(name)
        return self._with(*self.layers[:place], layer, *self.layers[place:])

    def inside(self, name: str, layer: Layer) -> Self:
        """Add a layer just inside the one named `name`."""
        place = self._find(name) + 1
        return self._with(*self.layers[:place], layer, *self.layers[place:])

    def _find(self, name: str) -> int:
        names = [layer.name for layer in self.layers]
        if name not in names:
            msg = f"there is no layer {name!r} in the stack; it has: {', '.join(names) or 'none'}"
            raise ConfigurationError(msg)
        return names.index(name)

    def build(self, wire: SyncWire | None = None) -> Transport:
        """The stack around a sync wire; by default one that honours proxies, and `STKAI_HTTP_*`.

        Raises:
            ConfigurationError: the wire is async, or no transport at all, or StackSpot CLI was to sign.
        """
        transport: Any = self._make_wire() if wire is None else wire
        _require(transport, httpx.BaseTransport, "the wire", "httpx.HTTPTransport(), or call build_async()")
        if self._parts is not None:
            self._parts.check_signed(transport, self.layers)
        for layer in reversed(self.layers):
            transport = layer.sync(transport, context=self.context)
            _require(
                transport, httpx.BaseTransport, f"what the layer {layer.name!r} makes", "a LayerTransport"
            )
        return cast(Transport, transport)

    def build_async(self, wire: AsyncWire | None = None) -> AsyncTransport:
        """The stack around an async wire; by default one that honours proxies, and `STKAI_HTTP_*`.

        Raises:
            ConfigurationError: the wire is sync, or no transport at all, or StackSpot CLI was to sign.
        """
        transport: Any = self._make_async_wire() if wire is None else wire
        _require(
            transport, httpx.AsyncBaseTransport, "the wire", "httpx.AsyncHTTPTransport(), or call build()"
        )
        if self._parts is not None:
            self._parts.check_signed(transport, self.layers)
        for layer in reversed(self.layers):
            transport = layer.asynchronous(transport, context=self.context)
            _require(
                transport,
                httpx.AsyncBaseTransport,
                f"what the layer {layer.name!r} makes",
                "an AsyncLayerTransport",
            )
        return cast(AsyncTransport, transport)

    def _make_wire(self) -> httpx.BaseTransport:
        from ._wire.by_package import WireByFamily

        return WireByFamily() if self._parts is None else self._parts.make_wire()

    def _make_async_wire(self) -> httpx.AsyncBaseTransport:
        from ._wire.by_package import AsyncWireByFamily

        return AsyncWireByFamily() if self._parts is None else self._parts.make_async_wire()

    def __str__(self) -> str:
        return " > ".join([*(layer.name for layer in self.layers), "wire"])

    def __repr__(self) -> str:
        return f"<StackBuilder {self}>"


def _checked(given: Iterable[Layer]) -> tuple[Layer, ...]:
    try:
        layers = tuple(given)
    except TypeError as error:
        msg = f"a stack is made of several layers, such as [stkai.transports.retry()], not of {given!r}"
        raise ConfigurationError(msg) from error
    from .transports._auth.transport import BearerAuth
    from .transports._limit.tickets import TicketQueue

    margin, names = math.inf, set[str]()
    for layer in layers:
        if not isinstance(layer, Layer):
            msg = f"a stack is made of layers, such as stkai.transports.retry(...), not {layer!r}"
            raise ConfigurationError(msg)
        if layer.name in names:
            msg = (
                f"the stack has two layers named {layer.name!r}; leave one out, or rename it: Layer(name=...)"
            )
            raise ConfigurationError(msg)
        names.add(layer.name)
        if isinstance(layer.policy, BearerAuth):
            margin = getattr(layer.policy.provider, "refresh_margin", math.inf)
        if isinstance(layer.policy, TicketQueue) and (layer.policy.max_wait_time or 0) > margin:
            msg = (
                f"tokens are renewed {margin:g} s before they end, but a signed request may wait"
                f" {layer.policy.max_wait_time:g} s for its permit: raise refresh_margin, or lower max_wait_time"
            )
            raise ConfigurationError(msg)
    return layers


def _require(transport: object, kind: type, what: str, example: str) -> None:
    if not isinstance(transport, alike(kind)):
        msg = f"{what} must be an httpx.{kind.__name__}, such as {example}; not {transport!r}"
        raise ConfigurationError(msg)


def build_transport(
    *,
    auth: "Auth" = "auto",
    rate_limit: "RateLimit" = UNSET,
    retry: "Retry" = UNSET,
    transport: SyncWire | None = None,
    listener: Listener | None = None,
    clock: Clock | None = None,
    random: Callable[[], float] | None = None,
) -> Transport:
    """The standard stack as one transport, to put into an `httpx.Client` or `httpx2.Client`, or into its `mounts`.

    Args:
        auth: a provider, `BearerAuth`, None, or "auto": StackSpot CLI where it is installed and no other wire is
            given, else the credentials of the settings.
        rate_limit: "token_bucket" or "adaptive" with the numbers of the settings, a `RateLimitConfig`, a policy object
            to share, or None. Not given: as the settings say.
        retry: a policy, or None. Not given: as the settings say.
        transport: the wire; by default one of the package of each request, httpx or httpx2, that honours proxies, and
            verification and limits of the settings.
        listener: called with every event of the stack.
        clock: where the stack gets its time from.
        random: draws numbers in [0, 1), for jitter.

    Raises:
        ConfigurationError: (a ValueError) the settings or the arguments cannot work; the message says what to do.
    """
    from ._standard import Parts

    own_wire = transport is not None
    parts = Parts.choose(
        STKAI.config, auth=auth, rate_limit=rate_limit, retry=retry, own_wire=own_wire, clock=clock
    )
    stack = StackBuilder(parts.layers, clock=clock, listener=listener, random=random)
    return stack.build(parts.make_wire() if transport is None else transport)


def build_async_transport(
    *,
    auth: "Auth" = "auto",
    rate_limit: "RateLimit" = UNSET,
    retry: "Retry" = UNSET,
    transport: AsyncWire | None = None,
    listener: Listener | None = None,
    clock: Clock | None = None,
    random: Callable[[], float] | None = None,
) -> AsyncTransport:
    """Like `build_transport`, for the async clients, on asyncio and trio; StackSpot CLI does not count here."""
    from ._standard import Parts

    parts = Parts.choose(
        STKAI.config, auth=auth, rate_limit=rate_limit, retry=retry, own_wire=True, clock=clock
    )
    stack = StackBuilder(parts.layers, clock=clock, listener=listener, random=random)
    return stack.build_async(parts.make_async_wire() if transport is None else transport)


def build_client(
    *,
    auth: "Auth" = "auto",
    rate_limit: "RateLimit" = UNSET,
    retry: "Retry" = UNSET,
    transport: SyncWire | None = None,
    listener: Listener | None = None,
    clock: Clock | None = None,
    random: Callable[[], float] | None = None,
) -> HttpClient:
    """A client with `get`, `post` and `post_stream` over the standard stack; arguments as for `build_transport`."""
    return HttpClient(
        build_transport(
            auth=auth,
            rate_limit=rate_limit,
            retry=retry,
            transport=transport,
            listener=listener,
            clock=clock,
            random=random,
        )
    )


def build_async_client(
    *,
    auth: "Auth" = "auto",
    rate_limit: "RateLimit" = UNSET,
    retry: "Retry" = UNSET,
    transport: AsyncWire | None = None,
    listener: Listener | None = None,
    clock: Clock | None = None,
    random: Callable[[], float] | None = None,
) -> AsyncHttpClient:
    """An async client with `get`, `post` and `post_stream` over the standard stack, on asyncio and trio."""
    return AsyncHttpClient(
        build_async_transport(
            auth=auth,
            rate_limit=rate_limit,
            retry=retry,
            transport=transport,
            listener=listener,
            clock=clock,
            random=random,
        )
    )
