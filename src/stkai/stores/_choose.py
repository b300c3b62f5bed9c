"""Makes a store from the value of `store=` or STKAI_RATE_LIMIT_STORE."""

import os
from urllib.parse import unquote

from .._errors import ConfigurationError
from ._file import FileStore
from ._protocol import Store
from ._redis import SCHEMES, RedisStore

ALLOWED = "'file', a URL (file:///directory, redis://, rediss:// or unix://), or a Store"


def store_from(store: "str | Store | None", timeout: float = 0.25) -> Store:
    """The store for this value; `timeout`, in seconds, applies to Redis URLs.

    Raises:
        ConfigurationError: the value does not describe a store, or it cannot be used.
    """
    if store is None or store == "file":
        return FileStore()
    if not isinstance(store, str):
        if isinstance(store, type) or not isinstance(store, Store):
            raise ConfigurationError(f"store must be {ALLOWED}, not a {type(store).__name__}")
        return store
    scheme, separator, rest = store.partition("://")
    if not separator:
        shown = store.rpartition("@")[2].partition("?")[0]
        raise ConfigurationError(f"store must be {ALLOWED}, not {shown!r}")
    if scheme in SCHEMES:
        return RedisStore(store, timeout=timeout)
    if scheme != "file":
        raise ConfigurationError(f"store has the scheme {scheme!r}; it must be {ALLOWED}")
    if not (rest.startswith("/") and rest.strip("/")):
        raise ConfigurationError(f"store must name a directory, as in file:///directory, not {store!r}")
    path = unquote(rest)
    # file:///C:/directory names a drive.
    return FileStore(path[1:] if os.name == "nt" and path[2:3] == ":" else path)
