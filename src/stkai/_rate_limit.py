"""The import path `stkai._rate_limit`, which the examples of the API reference use."""

from ._client import HttpClient
from ._errors import (
    ClientSideRateLimitError,
    RetryableError,
    ServerSideRateLimitError,
    TokenAcquisitionTimeoutError,
)
from ._reference.clients import AdaptiveRateLimitedHttpClient, TokenBucketRateLimitedHttpClient

__all__ = [
    "AdaptiveRateLimitedHttpClient",
    "ClientSideRateLimitError",
    "HttpClient",
    "RetryableError",
    "ServerSideRateLimitError",
    "TokenAcquisitionTimeoutError",
    "TokenBucketRateLimitedHttpClient",
]
