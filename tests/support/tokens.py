"""A scripted token endpoint, and helpers shared by the tests of authentication."""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from stkai import AuthenticationError, ClientCredentialsAuthProvider
from stkai.testing import FakeClock
from stkai.transports._auth.single_flight import join

from .threads import together
from .wire import Wire

ID = "the-client"
SECRET = "s3cret/+&=\u00e9"
TOKEN_URL = "https://id.example.com/oauth/token"
FIRST = "token-1"
MARGIN = 60.0
LIFETIME = 1200.0


def grant(token: object = FIRST, **fields: object) -> httpx.Response:
    """A token endpoint's answer; `...` leaves a field out."""
    content = {"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME, **fields}
    return httpx.Response(200, json={name: value for name, value in content.items() if value is not ...})


class Issuer(Wire):
    """Issues token-1, token-2, and so on.

    Args:
        before: called with the number of each request before the answer; may wait, sleep or raise.
    """

    package = httpx  # Tokens are always fetched through httpx.

    def __init__(self, before: Callable[[int], object] = lambda _: None, **fields: object) -> None:
        numbers = itertools.count(1)

        def issue(_: httpx.Request) -> httpx.Response:
            number = next(numbers)
            before(number)
            return grant(f"token-{number}", **fields)

        super().__init__(issue)

    @property
    def fetches(self) -> int:
        return len(self.requests)


def provider_over(
    wire: httpx.BaseTransport, clock: FakeClock | None = None, **options: Any
) -> ClientCredentialsAuthProvider:
    """A provider that gets its tokens from `wire`."""
    options = {"token_url": TOKEN_URL, "refresh_margin": MARGIN, **options}
    return ClientCredentialsAuthProvider(ID, SECRET, transport=wire, clock=clock or FakeClock(), **options)


def wait_for_callers(provider: ClientCredentialsAuthProvider, count: int) -> None:
    """Block until this many threads, the one that began it among them, wait for the renewal in progress."""
    fetch = join(provider._renew)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if len(fetch._waiting) >= count:
            return
        time.sleep(0)
    pytest.fail(f"only {len(fetch._waiting)} of {count} wait")


def in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns or raises in this many threads that start together."""

    def run() -> Any:
        try:
            return work()
        except AuthenticationError as error:
            return error

    return together(*[run] * count)


class Crowd:
    """Knows when everybody has arrived."""

    def __init__(self, size: int) -> None:
        self._missing = size
        self._changed = threading.Condition()

    def arrive(self) -> None:
        with self._changed:
            self._missing -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        """Block until the last one has arrived."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._missing <= 0, timeout=10), f"{self._missing} missing"
