"""One run: a scenario, the strategy that every process follows, and a seed."""

import math
import random
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import httpx
import trio

from stkai.stores import MemoryStore

from .scenario import Scenario
from .server import Arrival, Server
from .site import Site
from .strategies import Strategy
from .virtual import TrioClock, run_virtually, stream

_START = 1.0
"""Seconds within which the processes start."""


class Call(NamedTuple):
    """A call that has ended: when, after how many seconds, in which process, and whether it succeeded."""

    time: float
    seconds: float
    process: int
    succeeded: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """All that happened in a run."""

    arrivals: list[Arrival]
    calls: list[Call]


def simulate(scenario: Scenario, strategy: Strategy, seed: int) -> Trace:
    """The run in virtual time. Server, scheduler and each process have a stream of random numbers of their own."""
    return run_virtually(partial(_run, scenario, strategy, seed), seed)


async def _run(scenario: Scenario, strategy: Strategy, seed: int) -> Trace:
    server = Server(scenario, stream("server", seed))
    calls: list[Call] = []
    store = MemoryStore(TrioClock())
    with trio.move_on_at(scenario.end if scenario.batch is None else math.inf):
        async with trio.open_nursery() as nursery:
            for number in range(scenario.processes):
                chance = stream("process", number, seed)
                site = Site(scenario, server.wire(number), TrioClock(), chance, number, store)
                # Arrivals have their own randomness, so that they are the same whatever a strategy draws.
                arrivals = stream("arrivals", number, seed)
                process = _Process(number, scenario, strategy.build(site), arrivals, calls)
                nursery.start_soon(process.run)
    return Trace(server.arrivals, calls)


class _Process:
    """A client process: some workers over one stack."""

    def __init__(
        self,
        number: int,
        scenario: Scenario,
        transport: httpx.AsyncBaseTransport,
        arrivals: random.Random,
        calls: list[Call],
    ) -> None:
        self.number, self.scenario, self.transport = number, scenario, transport
        self.arrivals, self.calls = arrivals, calls
        self.left = math.inf if scenario.batch is None else scenario.share_of_batch

    async def run(self) -> None:
        scenario = self.scenario
        joins = scenario.middle if self.number >= scenario.processes - scenario.late else 0.0
        await trio.sleep(joins + self.arrivals.uniform(0, min(_START, scenario.window / 4)))
        async with trio.open_nursery() as nursery:
            if scenario.load is None:
                for _ in range(scenario.workers):
                    nursery.start_soon(self._work_endlessly)
                return
            arrive, arrived = trio.open_memory_channel[float](math.inf)
            for _ in range(scenario.workers):
                nursery.start_soon(self._work_as_they_come, arrived)
            rate = scenario.load * scenario.quota / scenario.window / scenario.processes
            while True:
                await trio.sleep(self.arrivals.expovariate(rate))
                arrive.send_nowait(trio.current_time())

    async def _work_endlessly(self) -> None:
        while self.left:
            self.left -= 1
            await self._call(trio.current_time())

    async def _work_as_they_come(self, arrived: trio.MemoryReceiveChannel[float]) -> None:
        async for instant in arrived:
            await self._call(instant)

    async def _call(self, arrived: float) -> None:
        """Send one request through the stack; its time counts from its arrival."""
        request = httpx.Request("POST", "https://quota.test/", content=b"{}")
        try:
            response = await self.transport.handle_async_request(request)
            succeeded = response.is_success
            await response.aclose()
        except httpx.HTTPError:
            succeeded = False
        now = trio.current_time()
        self.calls.append(Call(now, now - arrived, self.number, succeeded))
