"""The wire of a stack without `transport=`: each request leaves through the package that made it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx

from .._config.stkai import STKAI
from .._families import HTTPX, Family, family_of
from .closing import AsyncClosable, Closable
from .default import default_async_wire, default_wire

if TYPE_CHECKING:
    from .._config.models import HttpConfig


class WireByFamily(Closable):
    """The default wire of httpx, plus one of httpx2 from the first httpx2 request on.

    Raises:
        ConfigurationError: as for `default_wire`.
    """

    family = None
    is_leaf = True

    def __init__(self, config: "HttpConfig | None" = None) -> None:
        self._config = config or STKAI.config.http
        # Made here, so that unusable settings fail here.
        self._wires: dict[Family, httpx.BaseTransport] = {HTTPX: default_wire(self._config)}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.require_open()
        family = family_of(request)
        wire = self._wires.get(family)
        if wire is None:
            # Two threads may get here at once; the wire that is not kept has no connections yet.
            wire = self._wires.setdefault(family, default_wire(self._config, family))
        return wire.handle_request(request)

    def _close(self) -> None:
        for wire in list(self._wires.values()):
            wire.close()


class AsyncWireByFamily(AsyncClosable):
    """The async version of `WireByFamily`.

    Args:
        make: makes the wire of a package.
    """

    family = None
    is_leaf = True

    def __init__(
        self,
        config: "HttpConfig | None" = None,
        make: "Callable[[HttpConfig, Family], httpx.AsyncBaseTransport]" = default_async_wire,
    ) -> None:
        self._config, self._make = config or STKAI.config.http, make
        self._wires: dict[Family, httpx.AsyncBaseTransport] = {HTTPX: make(self._config, HTTPX)}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.require_open()
        family = family_of(request)
        wire = self._wires.get(family)
        if wire is None:
            wire = self._wires.setdefault(family, self._make(self._config, family))
        return await wire.handle_async_request(request)

    async def _aclose(self) -> None:
        for wire in list(self._wires.values()):
            await wire.aclose()
