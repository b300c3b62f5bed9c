"""The import path `stkai._auth`, which the examples of the API reference use."""

from ._credentials.client_credentials import ClientCredentialsAuthProvider, create_standalone_auth
from ._errors import AuthenticationError
from .transports._auth.provider import AuthProvider

__all__ = ["AuthProvider", "AuthenticationError", "ClientCredentialsAuthProvider", "create_standalone_auth"]
