"""Where a shared quota lives: a file for the processes of one machine, Redis or Valkey for many machines."""

from ._file import FileStore
from ._protocol import Ask, Law, Lease, Refusal, Snapshot, Store
from ._redis import RedisStore

__all__ = ["Ask", "FileStore", "Law", "Lease", "RedisStore", "Refusal", "Snapshot", "Store"]
