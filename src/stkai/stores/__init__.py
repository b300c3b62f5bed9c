"""Stores for shared quotas: a file for the processes of one machine, Redis or Valkey for several machines."""

from ._file import FileStore
from ._protocol import Ask, Law, Lease, Quota, Refusal, Snapshot, Store
from ._redis import RedisStore
from ._step import MemoryStore

__all__ = [
    "Ask",
    "FileStore",
    "Law",
    "Lease",
    "MemoryStore",
    "Quota",
    "RedisStore",
    "Refusal",
    "Snapshot",
    "Store",
]
