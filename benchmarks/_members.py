"""Processes that share one quota: what each was granted, and when."""

import multiprocessing
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import anyio
import httpx

import stkai
from stkai.transports import limiter

World = Literal["sync", "asyncio", "trio"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Processes with an endless backlog over one shared quota.

    Attributes:
        processes: how many.
        store: a value for `store=`.
        rate: the whole quota, in requests per second.
        seconds: length of the run.
        workers: requests that each process has in progress.
        world: how they send.
        burst: the burst of the whole quota.
        make: builds the limiter of one process, instead of stkai's token bucket.
        crowd: further tasks that wait in the first process, and are cancelled together.
        patience: seconds after which each of the crowd gives up and comes again at once; None waits until `cancel_at`.
        cancel_at: seconds from the start until the crowd is cancelled.
    """

    processes: int
    store: Any
    rate: float = 50.0
    seconds: float = 12.0
    workers: int = 4
    world: World = "sync"
    burst: float = 1.0
    make: Callable[["Group"], Any] | None = None
    crowd: int = 0
    patience: float | None = None
    cancel_at: float = 3.2

    def limiter(self) -> Any:
        """The limiter of one process."""
        if self.make is not None:
            return self.make(self)
        return stkai.TokenBucket(self.rate, 1, burst=self.burst, share="drill", store=self.store)


@dataclass(slots=True)
class Report:
    """The result of a run.

    Attributes:
        grants: for each process that survived, the times of its grants, in seconds from the start.
        events: how many processes heard each event, by its name.
        errors: the errors that reached a caller.
    """

    grants: dict[int, list[float]] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[float]:
        """The grants of all processes, in order."""
        return sorted(instant for grants in self.grants.values() for instant in grants)

    @property
    def jain(self) -> float:
        """Jain's fairness index of the processes."""
        counts = [len(grants) for grants in self.grants.values()]
        squares = sum(count * count for count in counts)
        return sum(counts) ** 2 / (len(counts) * squares) if squares else 0.0

    @property
    def most_in_a_second(self) -> int:
        """The most grants in any second, wherever it starts."""
        grants, first, most = self.all, 0, 0
        for place, instant in enumerate(grants):
            while grants[first] <= instant - 1:
                first += 1
            most = max(most, place - first + 1)
        return most

    def after(self, seconds: float) -> "Report":
        """The grants later than so many seconds after the start."""
        later = {
            number: [instant - seconds for instant in grants if instant >= seconds]
            for number, grants in self.grants.items()
        }
        return Report(later, self.events, self.errors)

    def per_second(self, seconds: int) -> list[int]:
        """How many grants there were in each second from the start."""
        counts = Counter(int(instant) for instant in self.all)
        return [counts[second] for second in range(seconds)]


def run_group(group: Group, during: Callable[[float, list[BaseProcess]], None] | None = None) -> Report:
    """Let the processes send while `during(start, processes)` does something to them or to the store."""
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    ready = [context.Event() for _ in range(group.processes)]
    start = context.Value("d", 0.0)
    go = context.Event()
    members = [
        context.Process(target=_member, args=(number, group, ready[number], go, start, results), daemon=True)
        for number in range(group.processes)
    ]
    for member in members:
        member.start()
    for each in ready:
        each.wait(30)
    start.value = time.monotonic() + 0.2
    go.set()
    thread = None
    if during is not None:
        thread = threading.Thread(target=during, args=(start.value, list(members)))
        thread.start()
    report = Report()
    until = start.value + group.seconds + 20
    missing = set(range(group.processes))
    while missing and time.monotonic() < until:
        try:
            number, grants, events, errors = results.get(timeout=0.2)
        except queue.Empty:
            missing = {number for number in missing if members[number].exitcode in (None, 0)}
            continue
        missing.discard(number)
        report.grants[number] = grants
        report.events.update(events)
        report.errors += errors
    if thread is not None:
        thread.join(30)
    for member in members:
        member.kill()
        member.join(10)
    return report


def _member(number: int, group: Group, ready: Any, go: Any, start: Any, results: Any) -> None:
    grants: list[float] = []
    events: list[str] = []
    errors: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        grants.append(time.monotonic() - start.value)
        return httpx.Response(200)

    def hear(event: stkai.Event) -> None:
        if type(event).__name__ in ("StoreLost", "StoreRestored", "QuotaDisagreement"):
            events.append(type(event).__name__)

    stack = stkai.StackBuilder([limiter(group.limiter())], listener=[hear])
    wire = httpx.MockTransport(answer)
    if group.world != "sync":
        anyio.run(anyio.sleep, 0, backend=group.world)  # Imports take their time.
    ready.set()
    go.wait()
    time.sleep(max(0.0, start.value - time.monotonic()))
    end = start.value + group.seconds
    if group.world == "sync":
        _in_threads(stack.build(wire), group.workers, end, errors)
    else:
        crowd = group.crowd if number == 0 else 0
        anyio.run(_in_tasks, stack.build_async(wire), group, crowd, end, errors, backend=group.world)
    results.put((number, [instant for instant in grants if instant < group.seconds], events, errors[:3]))
    results.close()
    results.join_thread()


def _in_threads(transport: httpx.BaseTransport, workers: int, end: float, errors: list[str]) -> None:
    def work() -> None:
        while time.monotonic() < end:
            try:
                transport.handle_request(httpx.Request("POST", "http://quota.test/"))
            except Exception as error:
                errors.append(repr(error))

    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(max(0.0, end - time.monotonic()))


async def _in_tasks(
    transport: httpx.AsyncBaseTransport, group: Group, crowd: int, end: float, errors: list[str]
) -> None:
    async def send() -> None:
        try:
            await transport.handle_async_request(httpx.Request("POST", "http://quota.test/"))
        except Exception as error:
            errors.append(repr(error))

    async def work() -> None:
        while time.monotonic() < end:
            await send()

    async def come_again(patience: float) -> None:
        while time.monotonic() < end:
            with anyio.move_on_after(patience):
                await send()

    with anyio.move_on_after(end - time.monotonic()):
        async with anyio.create_task_group() as tasks:
            for _ in range(group.workers):
                tasks.start_soon(work)
            if group.patience is not None:
                for _ in range(crowd):
                    tasks.start_soon(come_again, group.patience)
            else:
                with anyio.move_on_after(end - group.seconds + group.cancel_at - time.monotonic()):
                    async with anyio.create_task_group() as together:
                        for _ in range(crowd):
                            together.start_soon(send)
