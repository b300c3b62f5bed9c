"""The worlds that every transport test runs in, from one body: plain sync code, asyncio and trio."""

import asyncio
import inspect
import select
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeAlias, TypeVar

import anyio
import httpx
import trio

from .wire import Answer, Handler, Wire, finish

T = TypeVar("T")

Name: TypeAlias = Literal["sync", "asyncio", "trio"]
Transport: TypeAlias = httpx.BaseTransport | httpx.AsyncBaseTransport

NAMES: tuple[Name, ...] = ("sync", "asyncio", "trio")


class World:
    """Hides the difference between sync and async from a test.

    A test is an `async def` with the fixture `world`; it awaits only the methods of its world. In the sync world
    these call the sync variant immediately, so that the body runs to its end without an event loop.
    """

    def __init__(self, name: Name) -> None:
        self.name = name
        self.is_async = name != "sync"

    def run(self, body: Coroutine[Any, Any, T]) -> T:
        """Run a body to its end, and return its result."""
        if self.name == "asyncio":
            return asyncio.run(body)
        if self.name == "trio":

            async def main() -> T:
                return await body

            trio._core._run._r.seed(0)  # The order in which tasks run is left to chance there.
            return trio.run(main)
        return finish(body)

    def pick(self, sync: T, asynchronous: T) -> T:
        """One of two things, such as classes: the first in the sync world, the second in the others."""
        return asynchronous if self.is_async else sync

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function of this world, await it if it is async, and return its result."""
        result = function(*args, **kwargs)
        if not inspect.isawaitable(result):
            return result
        if not self.is_async:
            if inspect.iscoroutine(result):
                result.close()
            msg = f"{function} is async, and this is the sync world: choose it with world.pick(...)"
            raise AssertionError(msg)
        return await result

    # Transports

    def wire(self, *script: Answer | Handler) -> Wire:
        """A wire that gives these answers one by one, or asks a handler each time."""
        return Wire(*script)

    def build(self, stack: Any, wire: Transport | None = None) -> Any:
        """What a `StackBuilder` builds in this world: a sync or an async transport."""
        build = stack.build_async if self.is_async else stack.build
        return build() if wire is None else build(wire)

    def layer(self, layer: Any, inner: Transport, **kwargs: Any) -> Any:
        """The transport of one `Layer` around `inner`; `context=` is passed on."""
        return (layer.asynchronous if self.is_async else layer.sync)(inner, **kwargs)

    async def send(self, transport: Transport, request: httpx.Request) -> httpx.Response:
        """Send through a transport; the response is not read."""
        sender: Any = transport
        send = sender.handle_async_request if self.is_async else sender.handle_request
        response: httpx.Response = await self.call(send, request)
        return response

    async def read(self, response: httpx.Response) -> bytes:
        """Read the body to its end, decoded, which closes the response."""
        return await response.aread() if self.is_async else response.read()

    async def chunks(self, response: httpx.Response) -> list[bytes]:
        """The raw chunks of the body as they arrived."""
        if self.is_async:
            return [chunk async for chunk in response.aiter_raw()]
        return list(response.iter_raw())

    # Clients

    def client(self, transport: Transport | None = None, **kwargs: Any) -> Any:
        """An `httpx.Client` or `httpx.AsyncClient` over the transport; use its methods through `call`."""
        kind: Any = httpx.AsyncClient if self.is_async else httpx.Client
        return kind(transport=transport, **kwargs)

    async def close(self, thing: Any) -> None:
        """Close a transport, client or response."""
        await self.call(thing.aclose if self.is_async and hasattr(thing, "aclose") else thing.close)

    # Time and concurrency

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what a server, another thread or another task brings about."""
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, "it never came to be"
            if self.is_async:
                await anyio.lowlevel.checkpoint()
            select.select((), (), (), 0.001)  # This leaves the processor to others.

    async def sleep(self, clock: Any, seconds: float) -> None:
        """Sleep on a stkai clock."""
        await self.call(clock.asleep if self.is_async else clock.sleep, seconds)

    async def gather(self, *thunks: Callable[[], Awaitable[T]]) -> Sequence[T]:
        """Run bodies concurrently, in threads or tasks, and return their results in order.

        All of them run to their end; then the first error, in the order of the thunks, is raised.
        """
        outcomes = await self.outcomes(*thunks)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return [outcome for outcome in outcomes if not isinstance(outcome, Exception)]

    async def outcomes(self, *thunks: Callable[[], Awaitable[T]]) -> list[T | Exception]:
        """The same, with errors in place of results."""
        outcomes: dict[int, T | Exception] = {}

        async def one(number: int) -> None:
            try:
                outcomes[number] = await thunks[number]()
            except Exception as error:
                outcomes[number] = error

        if self.is_async:
            async with anyio.create_task_group() as group:
                for number in range(len(thunks)):
                    group.start_soon(one, number)
        else:
            with ThreadPoolExecutor(max(1, len(thunks))) as pool:
                for future in [pool.submit(finish, one(number)) for number in range(len(thunks))]:
                    future.result()
        return [outcomes[number] for number in range(len(thunks))]
