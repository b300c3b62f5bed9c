"""Stores for shared quotas: a file for the processes of one machine, Redis or Valkey for several machines."""

from ._file import FileStore
from ._memory import MemoryStore
from ._protocol import Ask, Known, Law, Lease, Refusal, Snapshot, Store
from ._redis import RedisStore

__all__ = [
    "Ask",
    "FileStore",
    "Known",
    "Law",
    "Lease",
    "MemoryStore",
    "RedisStore",
    "Refusal",
    "Snapshot",
    "Store",
]
