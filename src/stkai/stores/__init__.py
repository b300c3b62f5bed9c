"""Stores for shared quotas: a file for the processes of one machine, Redis or Valkey for several machines."""

import os
from typing import Final, cast
from urllib.parse import unquote

from .._errors import ConfigurationError
from .._secrets import Secret, reveal
from ._file import FileStore
from ._protocol import Ask, GroupRate, Lease, Quota, Refusal, Snapshot, Store
from ._redis import DEFAULT_TIMEOUT as DEFAULT_TIMEOUT
from ._redis import SCHEMES, RedisStore
from ._step import MemoryStore

__all__ = [
    "Ask",
    "FileStore",
    "GroupRate",
    "Lease",
    "MemoryStore",
    "Quota",
    "RedisStore",
    "Refusal",
    "Snapshot",
    "Store",
]
__dir__ = __all__.copy

Law = GroupRate  # The earlier name.

URLS: Final = "file:///dir, redis://, rediss:// or unix://"
ALLOWED: Final = f"'file', a URL ({URLS}), or a stkai.stores.Store"


def problem_of(store: object) -> str | None:
    """Why a value of `store=` is invalid; None if it is valid. Shows no password."""
    if store is None or store == "file" or (not isinstance(store, str | type) and isinstance(store, Store)):
        return None
    if not isinstance(store, str):
        return f"store must be {ALLOWED}, not a value of type {type(store).__name__}"
    scheme, separator, rest = store.partition("://")
    if not separator:
        return f"store must be {ALLOWED}, not {store.rpartition('@')[2].partition('?')[0]!r}"
    if scheme not in ("file", *SCHEMES):
        return f"store has the scheme {scheme!r}; it must be {ALLOWED}"
    if scheme == "file" and (not rest.startswith("/") or not rest.strip("/") or "\0" in unquote(rest)):
        return "store must name a directory, as in file:///directory"
    return None


def store_from(store: "str | Store | Secret | None", timeout: float = DEFAULT_TIMEOUT) -> Store:
    """The store that a value of `store=` describes; `timeout`, in seconds, applies to Redis URLs."""
    given = Secret(reveal(store))  # Tracebacks show variables, and a URL may contain a password.
    del store
    problem = problem_of(given.reveal())
    if problem is not None:
        raise ConfigurationError(problem)
    if given.reveal() in (None, "file"):
        return FileStore()
    if not isinstance(given.reveal(), str):
        return cast("Store", given.reveal())
    if given.reveal().startswith("file://"):
        path = unquote(given.reveal().removeprefix("file://"))
        # file:///C:/directory contains a drive letter.
        return FileStore(path[1:] if os.name == "nt" and path[2:3] == ":" else path)
    return RedisStore(given.reveal(), timeout=timeout)
