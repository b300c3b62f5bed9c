"""The import path `stkai._http`, which the examples of the API reference use."""

from typing import Any

from ._client import HttpClient
from ._gone import refuse
from ._reference.clients import EnvironmentAwareHttpClient, StandaloneHttpClient, StkCLIHttpClient

__all__ = ["EnvironmentAwareHttpClient", "HttpClient", "StandaloneHttpClient", "StkCLIHttpClient"]


def __getattr__(name: str) -> Any:
    refuse(__name__, name, imported=True)
