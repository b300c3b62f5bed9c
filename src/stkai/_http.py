"""The import path `stkai._http`, which the examples of the API reference use."""

from ._client import HttpClient
from ._reference.clients import EnvironmentAwareHttpClient, StandaloneHttpClient, StkCLIHttpClient

__all__ = ["EnvironmentAwareHttpClient", "HttpClient", "StandaloneHttpClient", "StkCLIHttpClient"]
