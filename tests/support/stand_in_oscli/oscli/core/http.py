"""StackSpot CLI's two functions as stkai calls them: they sign, and really send with requests.

Attributes:
    token: what the user who is logged in signs with; None when nobody is.
    calls: the keywords of each call, with the name of its function.
"""

from typing import Any

import requests

token: str | None = "token-of-the-cli"
calls: list[dict[str, Any]] = []


class NotLoggedIn(Exception):  # noqa: N818
    """Nobody is logged in."""


def get_with_authorization(
    url: str, timeout: float | None = 20, headers: dict[str, str] | None = None, use_cache: bool = True
) -> requests.Response:
    calls.append({"function": "get", "timeout": timeout, "headers": headers, "use_cache": use_cache})
    return requests.get(url, timeout=timeout, headers=_signed(headers))


def post_with_authorization(
    url: str,
    body: Any = None,
    timeout: float | None = 20,
    headers: dict[str, str] | None = None,
    **kwargs: Any,
) -> requests.Response:
    calls.append({"function": "post", "body": body, "timeout": timeout, "headers": headers, **kwargs})
    return requests.post(url, json=body, timeout=timeout, headers=_signed(headers), **kwargs)


def _signed(headers: dict[str, str] | None) -> dict[str, str]:
    if token is None:
        raise NotLoggedIn("you are not logged in")
    return {**(headers or {}), "Authorization": f"Bearer {token}"}
