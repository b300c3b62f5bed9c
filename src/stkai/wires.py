"""Wires other than the default one, for a stack to send its requests with.

client = stkai.build_async_client(transport=stkai.wires.aiohttp())
"""

from importlib.util import find_spec
from typing import Any, cast

from ._config import STKAI, models
from ._errors import ConfigurationError, missing_extra
from ._families import AsyncTransport

__all__ = ["aiohttp"]
__dir__ = __all__.copy


def aiohttp(config: "models.HttpConfig | None" = None) -> AsyncTransport:
    """An asyncio wire over aiohttp's connections, with about half the processor time per request of the default wire.

    It behaves like the default wire: the same errors, time limits, proxies, certificates and connection limits; no
    redirects, cookies, decompression or headers of its own. It may be created outside any event loop; each loop has its
    own connections, which are closed with the client or with the loop.

    Args:
        config: verification, limits and proxies; by default those of `STKAI.config.http` at the time of this call.

    Raises:
        ConfigurationError: aiohttp is not installed; `config` is not an HttpConfig, asks for HTTP/2 or a SOCKS proxy,
            or its certificates cannot be read; or (at the first request) the event loop is not asyncio's.
    """
    if find_spec("aiohttp") is None:
        raise missing_extra("stkai.wires.aiohttp()", "aiohttp")
    from ._wire.over_aiohttp import AiohttpWire

    if not isinstance(config, models.HttpConfig | None):
        raise ConfigurationError(f"config must be a stkai.HttpConfig or None, not {config!r}")
    wire: Any = AiohttpWire(config or STKAI.config.http)
    return cast("AsyncTransport", wire)
