"""Makes a store from the value of `store=` or STKAI_RATE_LIMIT_STORE."""

import os
from urllib.parse import unquote

from .._errors import ConfigurationError
from ._file import FileStore
from ._protocol import Store
from ._redis import SCHEMES, RedisStore

ALLOWED = "'file', a URL (file:///directory, redis://, rediss:// or unix://), or a Store"


def check_store(store: object) -> None:
    """Check the value of `store=` without opening anything.

    Raises:
        ConfigurationError: the value does not describe a store.
    """
    if store is None or store == "file" or (not isinstance(store, str | type) and isinstance(store, Store)):
        return
    if not isinstance(store, str):
        raise ConfigurationError(f"store must be {ALLOWED}, not a {type(store).__name__}")
    scheme, separator, rest = store.partition("://")
    if not separator:
        raise ConfigurationError(
            f"store must be {ALLOWED}, not {store.rpartition('@')[2].partition('?')[0]!r}"
        )
    if scheme not in ("file", *SCHEMES):
        raise ConfigurationError(f"store has the scheme {scheme!r}; it must be {ALLOWED}")
    if scheme == "file" and not (rest.startswith("/") and rest.strip("/")):
        raise ConfigurationError(f"store must name a directory, as in file:///directory, not {store!r}")


def store_from(store: "str | Store | None", timeout: float = 0.25) -> Store:
    """The store for this value; `timeout`, in seconds, applies to Redis URLs.

    Raises:
        ConfigurationError: there is no such store, or it cannot be used.
    """
    check_store(store)
    if store is None or store == "file":
        return FileStore()
    if not isinstance(store, str):
        return store
    if store.startswith("file://"):
        path = unquote(store.removeprefix("file://"))
        # file:///C:/directory names a drive.
        return FileStore(path[1:] if os.name == "nt" and path[2:3] == ":" else path)
    return RedisStore(store, timeout=timeout)
