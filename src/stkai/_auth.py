"""The import path `stkai._auth`, which the examples of the API reference use."""

from typing import Any

from ._credentials.client_credentials import ClientCredentialsAuthProvider, create_standalone_auth
from ._errors import AuthenticationError
from ._gone import refuse
from .transports._auth.provider import AuthProvider

__all__ = ["AuthProvider", "AuthenticationError", "ClientCredentialsAuthProvider", "create_standalone_auth"]


def __getattr__(name: str) -> Any:
    refuse(__name__, name, imported=True)
