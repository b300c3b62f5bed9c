"""A simulated process: an event loop in virtual time, with a stack over a limiter that sends messages to its store."""

import asyncio
import copy
import math
import random
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, proxy

import httpx
import pytest

from stkai import RequestOptions, StackBuilder, _process
from stkai.stores import Ask, GroupRate, Lease
from stkai.stores._step import amend
from stkai.transports import limiter
from stkai.transports._limits import store_client

if TYPE_CHECKING:
    from .simulator import Simulator

URL = httpx.URL("http://quota.test/")


class Connection:
    """A process's way to the store."""

    def __init__(self, process: "Process") -> None:
        self.process = process
        self.answers: dict[int, Lease | None] = {}

    def lease(self, ask: Ask) -> Lease:
        """The answer that has arrived for this message."""
        lease = self.answers.pop(id(ask))
        if lease is None:
            raise TimeoutError("the store did not answer")
        return lease

    def amend(self, epoch: int, law: GroupRate) -> bool:
        sim = self.process.sim
        if not sim.is_up or sim.state is None:
            raise TimeoutError("the store did not answer")
        return amend(sim.state, epoch, law, sim.now + sim.clock_offset)

    def close(self) -> None:
        """Nothing is open."""


class Process:
    """An event loop with a stack over a limiter."""

    def __init__(self, sim: "Simulator", number: int, policy: Any = None) -> None:
        self.sim, self.number = sim, number
        self.is_alive, self.frozen_until = True, -math.inf
        self.waiting = 0
        self.idle_since = sim.now
        self.store = Connection(self)
        self.loop = Loop(self)
        self.tasks: list[asyncio.Task[Any]] = []
        self.policy = sim.make(sim, self.store) if policy is None else policy
        chance = random.Random(number)  # noqa: S311
        stack = StackBuilder([limiter(self.policy)], clock=Clock(self), listener=[], random=chance.random)
        self.transport = stack.build_async(Wire(self))

    def run(self, event: Callable[[], object]) -> None:
        """Run an event, unless the process was killed; later, if it is suspended."""
        if not self.is_alive:
            return
        if self.frozen_until > self.sim.now:
            self.sim.at(self.frozen_until - self.sim.now, event, self)
            return
        before, self.sim.current = self.sim.current, self
        try:
            event()
        finally:
            self.sim.current = before

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Start a task."""
        task = self.loop.create_task(work)
        self.tasks.append(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and task.exception() is not None:
            self.sim.errors.append(task.exception())

    def loops(self, tasks: int, seconds: float, **options: Any) -> None:
        """Start tasks that send one request after the other for so many seconds."""
        until = self.sim.now + seconds

        async def send() -> None:
            while self.sim.now < until:
                await self.request(**options)

        for _ in range(tasks):
            self.spawn(send())

    def crowd(self, tasks: int, seconds: float, patience: Callable[[], float], low: float = 0.0) -> None:
        """Start requests that are given up after a time, and begin anew at once."""
        sim = self.sim
        until = sim.now + seconds

        async def send() -> None:
            while sim.now < until:
                priority = "low" if sim.chance.random() < low else "normal"
                try:
                    async with asyncio.timeout(patience()):
                        await self.request(priority=priority)
                except TimeoutError:
                    pass

        for _ in range(tasks):
            self.spawn(send())

    async def request(
        self,
        *,
        cost: float | None = None,
        real: float | None = None,
        priority: Any = "normal",
        max_wait_time: float | None = None,
    ) -> httpx.Response:
        """Send a request through the stack; `real` is what it turns out to cost."""
        given: dict[str, Any] = {} if cost is None else {"cost": cost}
        options = RequestOptions(priority=priority, max_wait_time=max_wait_time, **given)
        request = httpx.Request("POST", URL, extensions={"stkai": options, "sent": [], "real": real})
        self._wait(1)
        try:
            response: httpx.Response = await self.transport.handle_async_request(request)
        finally:
            if not request.extensions["sent"]:
                self._wait(-1)
        await response.aclose()
        return response

    def _wait(self, by: int) -> None:
        self.waiting += by
        self.idle_since = self.sim.now
        self.sim.waiting.change(by, self.sim.now)

    def kill(self) -> None:
        """End it without notice, as by SIGKILL."""
        self.is_alive = False
        self.sim.is_troubled = True
        self.sim.waiting.change(-self.waiting, self.sim.now)
        self.waiting = 0

    def suspend(self, seconds: float) -> None:
        """Stop it for so many seconds."""
        self.frozen_until = self.sim.now + seconds

    def fork(self) -> "Process":
        """A child that inherits the limiter; its parent's tasks do not run in it."""
        sim = self.sim
        # What belongs to the parent's tasks and stack is not copied.
        leased = self.policy._leased
        turns = [*leased.order.turns, *leased.order.woken, leased.calling and leased.calling.turn]
        memo: dict[int, Any] = {id(each): each for each in (self.transport, *turns)}
        memo[id(self.store)] = self.store
        memo[id(self.policy)] = policy = object.__new__(type(self.policy))
        vars(policy).update(copy.deepcopy(vars(self.policy), memo))
        child = Process(sim, len(sim.processes), policy)
        policy._leased.client.store = child.store
        policy._leased.order.members = WeakSet(policy.sources)  # A copy of the set has the parent's.
        sim.processes.append(child)
        for thing, renew in list(_process._renewals.items()):
            if memo.get(id(thing), thing) is not thing:
                child.run(partial(renew, memo[id(thing)]))
        return child


async def sleep(seconds: float) -> None:
    """Suspend this task."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def wake() -> None:
        if not done.done():
            done.set_result(None)

    handle = loop.call_later(seconds, wake)
    try:
        await done
    finally:
        handle.cancel()


class Wire(httpx.AsyncBaseTransport):
    """Notes what was sent, and lets the simulated server answer."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        process, sim = self.process, self.process.sim
        options = request.extensions["stkai"]
        cost = request.extensions["real"] or (options.cost if isinstance(options.cost, float) else 1.0)
        sim.note_use(process, cost, is_low=options.priority == "low")
        request.extensions["sent"].append(sim.now)
        process._wait(-1)
        response = await sim.serve(process)
        response.request = request
        return response


class Clock:
    """A process's clock."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def monotonic(self) -> float:
        return self.process.sim.now

    def utcnow(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.process.sim.now)

    def sleep(self, seconds: float) -> None:
        raise NotImplementedError("the simulated processes are async")

    async def asleep(self, seconds: float) -> None:
        await sleep(seconds)


class CurrentClock(Clock):
    """The clock of whatever process runs: stands in for the system's."""

    def __init__(self, sim: "Simulator") -> None:
        self.sim = sim

    @property
    def process(self) -> Any:  # type: ignore[override]
        return self


class Idle(selectors.SelectSelector):
    """Nothing ever happens on a simulated process's sockets."""

    def select(self, timeout: float | None = None) -> list[Any]:
        return []


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time is the simulator's; its timers may come late."""

    def __init__(self, process: Process) -> None:
        self.process, self._turns = process, False
        super().__init__(Idle())

    def time(self) -> float:
        return self.process.sim.now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        chance = self.process.sim.chance
        self._later(when - self.time() + chance.choice([0.0, 0.0, 0.0, 0.0005, 0.003]))
        return handle

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        handle = super().call_soon(callback, *args, context=context)
        if not self._turns:
            self._later(0.0)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def _later(self, seconds: float) -> None:
        self.process.sim.at(seconds, self._turn, self.process)

    def _turn(self) -> None:
        self._turns = True
        asyncio._set_running_loop(self)
        try:  # `run_forever` does the same, and takes as long again to begin and to end.
            self._run_once()  # type: ignore[attr-defined]
        finally:
            asyncio._set_running_loop(None)
            self._turns = False
        if self._ready:  # type: ignore[attr-defined]
            self._later(0.0)


class VirtualBackground:
    """Background calls of the process that runs."""

    def __init__(self, sim: "Simulator") -> None:
        self.sim = sim

    def later(self, seconds: float, work: Callable[[], None]) -> bool:
        late = self.sim.chance.choice([0.0, self.sim.chance.uniform(0, 0.001)])
        self.sim.at(seconds + late, work, self.sim.current)
        return True


def belongs_to(sim: "Simulator", client: Any) -> bool:
    """Whether it is a limiter of this simulation, and not one of an earlier test, which may be collected meanwhile."""
    return getattr(client.store, "process", None) in sim.processes


def keep_others_out(sim: "Simulator", patch: pytest.MonkeyPatch) -> None:
    """Let limiters of earlier tests do nothing: their calls would draw random numbers of this simulation."""
    real_schedule = store_client.StoreClient.schedule

    def schedule(client: Any, seconds: float) -> None:
        if belongs_to(sim, client):
            real_schedule(client, seconds)

    patch.setattr(store_client.StoreClient, "schedule", schedule)

    def retire(client: Any) -> None:
        # It ends at once, and not only with the garbage collector.
        client.member.client = proxy(client)

    patch.setattr(store_client.StoreClient, "retire", retire)


def install(sim: "Simulator", patch: pytest.MonkeyPatch) -> None:
    """Let the limiters' threads and clocks be the simulator's."""
    keep_others_out(sim, patch)
    threads: list[asyncio.Future[None]] = []

    class AbandonableWork:
        """A call that a request waits for."""

        def __init__(self, work: Callable[[], object]) -> None:
            self.work, self.done = work, asyncio.get_running_loop().create_future()

        @property
        def is_done(self) -> bool:
            return self.done.done()

        def run(self) -> None:
            if self.done.cancelled():
                return  # It was never begun.
            threads.append(self.done)
            self.work()
            if threads:  # It had nothing to send.
                threads.pop().set_result(None)

        async def await_(self, _: float) -> bool:
            await self.done
            return True

        def result(self) -> None:
            """Nothing."""

    real_send = store_client.StoreClient._send

    def send(client: Any, call: Any, ask: Ask) -> None:
        if not belongs_to(sim, client):
            return  # Its last report, from a real thread.
        thread = threads.pop() if threads else None

        def end() -> None:
            real_send(client, call, ask)
            if thread is not None and not thread.done():
                thread.set_result(None)

        sim.message(client.store.process, ask, end)

    def do_within(_: float, work: Callable[[], None]) -> None:
        work()

    patch.setattr(store_client, "AbandonableWork", AbandonableWork)
    patch.setattr(store_client.StoreClient, "_send", send)
    # The answer is there: no call needs a thread for its time limit.
    patch.setattr(store_client.StoreClient, "_call", lambda _, method, *words: method(*words))
    patch.setattr(store_client, "do_within", do_within)
    patch.setattr(store_client, "background", VirtualBackground(sim))
    patch.setattr(store_client, "_clock", CurrentClock(sim))
