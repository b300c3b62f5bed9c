"""The import path `stkai._retry`, which the examples of the API reference use."""

from ._errors import MaxRetriesExceededError, RetryableError
from ._reference.retrying import Retrying

__all__ = ["MaxRetriesExceededError", "RetryableError", "Retrying"]
