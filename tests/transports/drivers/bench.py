"""A layer whose flow carries out one operation, and what it may meet: an error, a stall, an interrupt."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx

from stkai import RequestOptions, StackBuilder
from stkai.testing import FakeClock
from stkai.transports import Attempt, Close, Drain, Flow, Layer, Load, Operation, Read, Run, Send, Sleep

from ...support.wire import of_streams
from ...support.world import World

URL = "https://api.example.com/v1"


STALLING = ("send", "sleep", "read", "load", "run")
"""The operations that may take long and are not clean-up."""


class Stall:
    """Work that does not end by itself, in a task or a thread, or that raises at once."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.entered = False
        self.released = threading.Event()

    def sync(self, *_: Any) -> Any:
        self.entered = True
        if self.error is not None:
            raise self.error
        assert self.released.wait(10), "nobody gave up waiting"

    async def wait(self, *_: Any) -> Any:
        self.entered = True
        if self.error is not None:
            raise self.error
        await anyio.Event().wait()


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that stalls after its first bytes, and knows whether it was closed."""

    def __init__(self, stall: Stall | None = None) -> None:
        self.stall = stall
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield b"first"
        if self.stall:
            self.stall.sync()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"first"
        if self.stall:
            await self.stall.wait()

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()  # A cancellation here would leave it open.
        self.closed = True


class Bench:
    """One layer whose flow carries out one operation, and cleans up if that fails.

    Attributes:
        log: what the flow saw.
        kept: a response that it holds, and closes in its clean-up.
    """

    def __init__(self, world: World, kind: str, error: BaseException | None = None) -> None:
        self.world, self.kind = world, kind
        self.stall = Stall(error)
        self.clock: Any = FakeClock(autojump=False)
        self.log: list[str] = []
        self.body = of_streams(Body)()
        self.stalling = of_streams(Body)(self.stall)
        self.wire = world.wire(self._answer)
        self.given_back = 0

    def _answer(self, _: httpx.Request) -> Any:
        if self.kind != "send":
            return 200
        if self.world.is_async:
            return self._stalled()
        self.stall.sync()
        return 200

    async def _stalled(self) -> Any:
        await self.stall.wait()
        return 200

    def operation(self, layer: Any, request: httpx.Request, attempt: Attempt) -> Operation:
        stalled = httpx.Response(200, stream=self.stalling)
        operations: dict[str, Callable[[], Operation]] = {
            "send": lambda: Send(layer.inner, request, attempt),
            "sleep": lambda: Sleep(1e6),
            "read": lambda: Read(stalled),
            "load": lambda: Load(stalled, 1000),
            "run": lambda: Run(self.stall.sync, self.stall.wait),
            "drain": lambda: Drain(stalled),
            "clean-up run": lambda: Run(self._give_back, self._agive_back, cleans_up=True),
            "close": lambda: Close(stalled),
        }
        return operations[self.kind]()

    def flow(self, layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        kept = httpx.Response(200, stream=self.body)
        self.log.append("begun")
        try:
            yield self.operation(layer, request, attempt)
        except BaseException as error:
            self.log.append(type(error).__name__)
            yield Close(kept)
            yield Run(self._give_back, self._agive_back, cleans_up=True)
            self.log.append("cleaned up")
            raise
        self.log.append("done")
        yield Close(kept)
        response: httpx.Response = yield Send(layer.inner, request, attempt)
        return response

    def _give_back(self, _: float) -> None:
        self.given_back += 1

    async def _agive_back(self, _: float) -> None:
        await anyio.lowlevel.checkpoint()
        self.given_back += 1

    def transport(self, *outer: Layer, **context: Any) -> Any:
        stack = StackBuilder((*outer, Layer("bench", self.flow)), **{"clock": self.clock, **context})
        return self.world.build(stack, self.wire)

    async def send(self, **options: Any) -> httpx.Response:
        extensions = {"stkai": RequestOptions(**options)} if options else {}
        return await self.world.send(self.transport(), httpx.Request("GET", URL, extensions=extensions))

    async def stalled(self) -> None:
        while not self.stall.entered and not self.clock.sleepers:
            await anyio.lowlevel.checkpoint()

    def assert_cleaned_up(self, error: str) -> None:
        assert self.log == ["begun", error, "cleaned up"]
        assert self.body.closed
        assert self.given_back == 1
        assert self.wire.open == 0
        if self.kind in {"read", "load", "drain"}:
            assert self.stalling.closed
