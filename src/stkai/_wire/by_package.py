"""The wire of a stack that is given none: each request goes out by the package that it was made with."""

from typing import TYPE_CHECKING

import httpx

from .._config.stkai import STKAI
from .._families import HTTPX, Family, family_of
from .default import default_async_wire, default_wire

if TYPE_CHECKING:
    from .._config.models import HttpConfig


class WireByFamily(httpx.BaseTransport):
    """The default wire of httpx, and, from the first request on that needs it, that of httpx2.

    Raises:
        ConfigurationError: as for `default_wire`.
    """

    family = None

    def __init__(self, config: "HttpConfig | None" = None) -> None:
        self._config = config or STKAI.config.http
        # At once, so that what cannot work is said at once.
        self._wires: dict[Family, httpx.BaseTransport] = {HTTPX: default_wire(self._config)}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        family = family_of(request)
        wire = self._wires.get(family)
        if wire is None:
            # Of two threads that come first, one is the first; the other's wire has no connections yet.
            wire = self._wires.setdefault(family, default_wire(self._config, family))
        return wire.handle_request(request)

    def close(self) -> None:
        for wire in list(self._wires.values()):
            wire.close()


class AsyncWireByFamily(httpx.AsyncBaseTransport):
    """The same for the async world."""

    family = None

    def __init__(self, config: "HttpConfig | None" = None) -> None:
        self._config = config or STKAI.config.http
        self._wires: dict[Family, httpx.AsyncBaseTransport] = {HTTPX: default_async_wire(self._config)}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        family = family_of(request)
        wire = self._wires.get(family)
        if wire is None:
            wire = self._wires.setdefault(family, default_async_wire(self._config, family))
        return await wire.handle_async_request(request)

    async def aclose(self) -> None:
        for wire in list(self._wires.values()):
            await wire.aclose()
