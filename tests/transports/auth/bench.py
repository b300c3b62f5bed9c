"""Requests, providers and servers of the tests of the auth layer."""

import threading
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest

from stkai import AuthProvider
from stkai.transports import AsyncAuthTransport, AuthTransport

from ...support.tokens import Crowd
from ...support.wire import Wire
from ...support.world import World

URL = "https://api.example.com/v1/chat"


def bearer(request: httpx.Request) -> str | None:
    value: str | None = request.headers.get("authorization")
    return value


def post(**options: Any) -> httpx.Request:
    return httpx.Request("POST", URL, json={"a": 1}, **options)


def layer(world: World, wire: Any, policy: Any, **options: Any) -> Any:
    return world.pick(AuthTransport, AsyncAuthTransport)(wire, policy, **options)


class Static(AuthProvider):
    """A sync-only provider that exposes no cached token and counts its calls."""

    def __init__(self, *tokens: Any) -> None:
        self.tokens = iter(tokens)
        self.last: Any = None
        self.asked = 0
        self.threads: set[int] = set()
        self.forgotten: list[str] = []

    def get_access_token(self) -> str:
        self.asked += 1
        self.threads.add(threading.get_ident())
        self.last = next(self.tokens, self.last)
        if isinstance(self.last, Exception):
            raise self.last
        token: str = self.last
        return token

    def forget(self, token: str) -> None:
        self.forgotten.append(token)


class Server(Wire):
    """An API that refuses some tokens."""

    def __init__(self, *refused: str) -> None:
        self.refused = {f"Bearer {token}" for token in refused}
        super().__init__(lambda request: 401 if bearer(request) in self.refused else 200)

    @property
    def tokens(self) -> list[str | None]:
        return [bearer(request) for request in self.requests]


class Together:
    """Lets the first of a world's bodies continue together."""

    def __init__(self, world: World, size: int) -> None:
        self.world, self.missing = world, size
        self.crowd = Crowd(size)
        self.all_here: Any = None

    async def meet(self) -> None:
        if not self.world.is_async:
            self.crowd.arrive()
            self.crowd.wait()
            return
        self.all_here = self.all_here or anyio.Event()
        self.missing -= 1
        if self.missing == 0:
            self.all_here.set()
        await self.all_here.wait()


class Native(AuthProvider):
    """An async provider."""

    def __init__(self) -> None:
        self.asked = 0
        self.stuck = 0

    def get_access_token(self) -> str:
        pytest.fail("the async variant is there")

    async def aget_access_token(self) -> str:
        self.asked += 1
        number = self.asked
        await anyio.lowlevel.checkpoint()
        if number <= self.stuck:
            await anyio.Event().wait()
        return f"native-{number}"
