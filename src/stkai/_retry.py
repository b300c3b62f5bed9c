"""The import path `stkai._retry`, which the examples of the API reference use."""

from typing import Any

from ._errors import MaxRetriesExceededError, RetryableError
from ._gone import refuse
from ._reference.retrying import Retrying

__all__ = ["MaxRetriesExceededError", "RetryableError", "Retrying"]


def __getattr__(name: str) -> Any:
    refuse(__name__, name, imported=True)
