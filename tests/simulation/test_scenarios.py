"""Whatever befalls the processes of a group, it sends as much as its quota allows, and not more.

Each scenario runs on one seed; STKAI_TEST_SEEDS=20 tries more. A failure names its seed, which gives the same run.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import httpx
import pytest

from stkai import AimdLimiter, AllOf, InFlight, TokenAcquisitionTimeoutError, TokenBucket
from stkai.transports._limits.queue import Queue

from .process import Process, install, sleep
from .simulator import Metered, Simulator

SEEDS = range(int(os.environ.get("STKAI_TEST_SEEDS", "1")))

REDIS, FAR, FILE = 0.0005, 0.02, 0.00005
"""Seconds that a message takes at most: to Redis nearby, to one far away, and to a file."""


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def simulate(seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Simulator]]:
    made: list[Simulator] = []

    def make(**options: Any) -> Simulator:
        sim = Simulator(
            seed, processes=0, **{key: value for key, value in options.items() if key != "processes"}
        )
        install(sim, monkeypatch)
        for _ in range(options.get("processes", 2)):
            sim.start()
        made.append(sim)
        return sim

    yield make
    for sim in made:
        sim.end()


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """Let tasks that nobody awaited be noticed here, and not by another module."""
    yield
    gc.collect()


def goal_of(sim: Simulator) -> float:
    """A slow store costs a few permits more."""
    return 0.93 if sim.latency < FAR else 0.88


def test_a_crowd_that_gives_up_together_leaves_its_process_the_whole_quota(simulate: Any) -> None:
    sim = simulate(latency=REDIS)
    crowd, _ = sim.processes
    tasks = [crowd.spawn(crowd.request()) for _ in range(200)]
    sim.run(2)
    for task in tasks:
        task.cancel()
    crowd.loops(max(8, int(sim.rate / 16)), 6)
    sim.run(9)
    sim.finish(3, 4, goal=goal_of(sim))


def test_a_crowd_that_gives_up_together_leaves_others_the_whole_quota(simulate: Any) -> None:
    sim = simulate(latency=FAR, burst=1.0)
    crowd, other = sim.processes
    other.loops(max(8, int(sim.rate / 16)), 8)
    tasks = [crowd.spawn(crowd.request()) for _ in range(200)]
    sim.run(2)
    for task in tasks:
        task.cancel()
    sim.run(9)
    sim.finish(2, 5, goal=goal_of(sim))


def test_impatient_requests_do_not_stop_the_queue(simulate: Any) -> None:
    sim = simulate(latency=FILE, burst=1.0)
    crowd, other = sim.processes
    crowd.crowd(40, 6, lambda: sim.chance.expovariate(1), low=0.3)
    other.loops(max(8, int(sim.rate / 16)), 6)
    sim.run(9)
    sim.finish(2, 3, goal=goal_of(sim))


def test_storms_of_requests_that_wait_a_moment_do_not_stop_the_queue(simulate: Any) -> None:
    sim = simulate(latency=REDIS)
    crowd, other = sim.processes
    crowd.crowd(30, 6, lambda: 0.3)
    other.loops(max(8, int(sim.rate / 16)), 6)
    sim.run(9)
    sim.finish(2, 3, goal=goal_of(sim))


def test_a_crowd_that_gives_up_and_comes_again_as_one_wastes_no_permit(simulate: Any) -> None:
    sim = simulate(processes=1, make=lambda sim, _: TokenBucket(sim.rate, 1, burst=1))
    (crowd,) = sim.processes
    for _ in range(150):
        crowd.spawn(crowd.request())
    crowd.crowd(50, 6, lambda: 0.3)
    sim.run(9)
    sim.finish(1, 4, goal=0.98)


def test_processes_that_want_more_than_there_is_get_equal_shares(simulate: Any) -> None:
    sim = simulate(processes=50, burst=1.0)
    for process in sim.processes:
        process.loops(2, 7)
    sim.run(14)
    sim.finish(2, 4, goal=0.97)
    assert sim.fairness(2, 4.0) > 0.995


def test_a_process_that_needs_little_leaves_the_rest_to_others(simulate: Any) -> None:
    sim = simulate(processes=3)
    for process, tasks in zip(sim.processes, (25, 4, 1), strict=True):
        process.loops(tasks, 6)
    sim.run(9)
    sim.finish(2, 3, goal=0.97)


def test_a_busy_process_uses_what_many_others_leave_that_send_now_and_then(simulate: Any) -> None:
    sim = simulate(processes=21, rate=200.0, burst=1.0, latency=FAR)
    busy, *others = sim.processes

    async def now_and_then(process: Process) -> None:
        for _ in range(8):
            await sleep(sim.chance.uniform(0.5, 1.5))
            await process.request()

    for process in others:
        process.spawn(now_and_then(process))
    busy.loops(30, 8)
    sim.run(12)
    sim.finish(2, 5, goal=0.8)


def test_low_priority_beside_another_processs_normal_calls_gets_a_tenth(simulate: Any) -> None:
    sim = simulate(burst=1.0)
    normal, low = sim.processes
    normal.loops(8, 8)
    low.loops(8, 8, priority="low")
    sim.run(12)
    sim.finish(2, 5)
    sent = [use.low for use in sim.uses if use.instant < sim.began + 8]
    assert 0.05 < sum(sent) / len(sent) < 0.2


@pytest.mark.parametrize("rate", [50.0, 5.0])
@pytest.mark.parametrize("latency", [FILE, FAR])
def test_low_priority_uses_what_another_processs_normal_calls_leave(
    simulate: Any, rate: float, latency: float
) -> None:
    sim = simulate(rate=rate, burst=1.0, latency=latency)
    normal, low = sim.processes

    async def now_and_then() -> None:
        for _ in range(20):
            await normal.request()
            await sleep(0.97)

    normal.spawn(now_and_then())
    low.loops(8, 20, priority="low")
    sim.run(24)
    sim.finish(2, 17, goal=0.8)


def test_a_process_that_is_killed_leaves_its_part_to_the_others(simulate: Any) -> None:
    sim = simulate(processes=5, burst=1.0)
    for process in sim.processes:
        process.loops(6, 8)
    sim.run(3)
    sim.processes[0].kill()
    sim.run(12)
    sim.finish(2, 5)


def test_processes_that_are_suspended_do_not_send_what_is_past(simulate: Any) -> None:
    sim = simulate(processes=4, burst=1.0)
    for process in sim.processes:
        process.loops(8, 8)
    sim.run(3)
    for process in sim.processes[:2]:
        process.suspend(2.5)
    sim.run(11)
    sim.finish(2, 5)


def test_forked_children_are_members_of_their_own(simulate: Any) -> None:
    sim = simulate(burst=1.0)
    for process in sim.processes:
        process.loops(8, 6)
    sim.run(3.005)
    for _ in range(3):
        sim.processes[0].fork().loops(20, 3)
    sim.run(11)
    sim.finish(4, 2)
    assert {use.process for use in sim.uses} == set(range(5))


def test_lost_messages_cost_little(simulate: Any) -> None:
    sim = simulate(processes=4, rate=50.0, losses=0.02)
    for process in sim.processes:
        process.loops(5, 6)
    sim.run(14)
    sim.finish(2, 3, goal=0.7, excess=0.25)


def test_messages_that_arrive_twice_change_nothing(simulate: Any) -> None:
    sim = simulate(echoes=0.2)
    for process in sim.processes:
        process.crowd(20, 6, lambda: sim.chance.expovariate(2))
    sim.run(11)
    sim.finish(2, 3)


def test_while_the_store_is_lost_each_process_uses_its_part(simulate: Any) -> None:
    sim = simulate(processes=5, burst=1.0)
    for process in sim.processes:
        process.loops(8, 13)
    sim.run(3.3)
    sim.is_up, sim.is_troubled = False, True
    sim.run(4)
    sim.is_up = True
    sim.run(12)
    sim.finish(2, 10, goal=0.7, excess=0.15)


def test_a_state_that_is_lost_begins_anew_without_a_burst(simulate: Any) -> None:
    sim = simulate(processes=5, burst=1.0)
    for process in sim.processes:
        process.loops(8, 8)
    for _ in range(2):
        sim.run(2.5)
        sim.state, sim.is_troubled = None, True
    sim.run(9)
    sim.finish(1, 6, goal=0.6, excess=0.1)


def test_a_clock_that_jumps_holds_up_no_sleeper(simulate: Any) -> None:
    sim = simulate(processes=3, burst=1.0)
    for process in sim.processes:
        process.loops(8, 9)
    sim.run(2)
    for jump in (3600, -3600, 0.05, -0.05, 1.5, -1.5):
        sim.clock_offset += jump
        sim.run(1)
    sim.run(6)
    sim.finish(1, 7, goal=0.85, excess=0.25)


@pytest.mark.parametrize(("rate", "losses"), [(50.0, 0.0), (50.0, 0.02)])
def test_processes_come_and_go_at_random(simulate: Any, rate: float, losses: float) -> None:
    sim = simulate(processes=6, rate=rate, burst=1.0, losses=losses)
    ends = sim.now + 7
    for process in sim.processes:
        process.crowd(5, 7, lambda: sim.chance.expovariate(2))

    def trouble() -> None:
        process = sim.chance.choice([each for each in sim.processes if each.is_alive])
        chance = sim.chance.random()
        if chance < 0.2 and sum(each.is_alive for each in sim.processes) > 3:
            process.kill()
        elif chance < 0.5:
            process.suspend(sim.chance.uniform(0, 2))
        elif chance < 0.7:
            sim.start().crowd(5, ends - sim.now, lambda: sim.chance.expovariate(2))
        else:
            for task in process.tasks:
                task.cancel()
            process.crowd(5, ends - sim.now, lambda: sim.chance.expovariate(2))
        if sim.now < ends - 1:
            sim.at(sim.chance.expovariate(3), trouble)

    sim.at(1, trouble)
    sim.run(13)
    sim.finish(2, 4, goal=0.7 if losses else 0.8, excess=0.3 if losses else 0.1)


def test_a_quiet_group_sends_its_burst_at_once_and_no_more_in_the_window(simulate: Any) -> None:
    sim = simulate(processes=5, rate=10.0, window=4.0)
    sim.processes[0].loops(1, 0.1)
    sim.run(12)
    quiet = sim.now
    tasks = [process.spawn(process.request()) for process in sim.processes for _ in range(20)]
    sim.run(1)
    assert sum(task.done() for task in tasks) == 40
    sim.run(20)
    assert all(task.done() for task in tasks)
    assert sim.most_within(3.95) <= 40
    assert max(use.instant for use in sim.uses) < quiet + 8.5


@pytest.mark.parametrize(("tasks", "seconds"), [(10, 0.01), (10, 0.1), (4, 0.02)])
def test_a_burst_that_few_tasks_send_one_by_one_puts_no_more_in_the_window(
    simulate: Any, tasks: int, seconds: float
) -> None:
    sim = simulate(processes=2, rate=50.0, window=1.0)

    async def serve(process: Process) -> httpx.Response:
        await sleep(seconds)
        return httpx.Response(200)

    sim.serve = serve
    sim.processes[0].loops(1, 0.1)
    sim.run(5)
    for process in sim.processes:
        process.loops(tasks, 8)
    sim.run(9)
    assert sim.most_within(1.0 - 2 * sim.latency) <= 50
    assert len(sim.uses) >= 0.9 * 50 * 9


def test_what_was_not_sent_makes_no_more_room_in_the_window_than_it_took(simulate: Any) -> None:
    sim = simulate(processes=2, rate=1.0, window=10.0)
    until = sim.now + 80

    async def serve(_: Process) -> httpx.Response:
        if sim.chance.random() < 0.5:
            use = sim.uses[-1]
            await sleep(sim.chance.uniform(0, 5))
            sim.uses.remove(use)
            raise httpx.ConnectTimeout("nobody is there")
        return httpx.Response(200)

    async def send(process: Process) -> None:
        while sim.now < until:
            with suppress(httpx.ConnectTimeout):
                await process.request()

    sim.serve = serve
    for process in sim.processes:
        for _ in range(20):
            process.spawn(send(process))
    sim.run(80)
    assert sim.most_within(9.95) <= 10
    assert len(sim.uses) >= 50


def test_units_of_cost_are_shared(simulate: Any) -> None:
    sim = simulate(processes=4, rate=100.0, max_cost=1000.0)
    until = sim.now + 7

    async def send(process: Any) -> None:
        while sim.now < until:
            cost = sim.chance.choice([1.0, 5.0, 20.0, 50.0, 100.0])
            await process.request(cost=cost, real=sim.chance.choice([cost / 2, None]))

    for process in sim.processes:
        for _ in range(6):
            process.spawn(send(process))
    sim.run(12)
    sim.finish(2, 4, goal=0.0)
    spent = sum(use.cost for use in sim.uses if sim.began + 2 <= use.instant < sim.began + 6)
    assert 0.93 * 4000 <= spent <= 1.1 * 4000


def test_units_of_requests_that_are_cancelled_come_back(simulate: Any) -> None:
    sim = simulate(processes=3, rate=100.0, max_cost=1000.0)
    until = sim.now + 7
    crowd = sim.processes[0]

    async def impatient() -> None:
        while sim.now < until:
            task = crowd.spawn(crowd.request(cost=sim.chance.choice([1.0, 5.0, 20.0, 50.0, 400.0])))
            await sleep(sim.chance.uniform(0, 0.6))
            task.cancel()

    async def send(process: Any) -> None:
        while sim.now < until:
            await process.request(cost=sim.chance.choice([1.0, 5.0, 20.0, 50.0, 100.0]))

    for _ in range(40):
        crowd.spawn(impatient())
    for process in sim.processes[1:]:
        for _ in range(6):
            process.spawn(send(process))
    sim.run(13)
    sim.finish(2, 4, goal=0.0)
    spent = sum(use.cost for use in sim.uses if sim.began + 2 <= use.instant < sim.began + 6)
    assert 0.9 * 4000 <= spent <= 1.1 * 4000


@pytest.mark.parametrize("latency", [FILE, FAR])
@pytest.mark.parametrize(
    ("options", "cost", "soonest"),
    [({"rate": 5.0, "max_cost": 10.0}, 10.0, 0.1), ({"rate": 0.1}, None, 10.0)],
    ids=["units", "places"],
)
def test_what_a_refused_call_had_reserved_goes_to_those_who_asked_after_it(
    simulate: Any, options: Any, cost: float | None, soonest: float, latency: float
) -> None:
    sim = simulate(processes=2, window=10.0, latency=latency, **options)
    first, second = sim.processes
    small = None if cost is None else cost / 100

    async def refused() -> None:
        await first.request(cost=cost)
        with pytest.raises(TokenAcquisitionTimeoutError):
            await first.request(cost=cost, max_wait_time=3.0)
        sim.at(0.0, lambda: second.spawn(second.request(cost=small)), second)

    first.spawn(refused())
    sim.run(15)
    assert [use.process for use in sim.uses] == [0, 1]
    assert soonest <= sim.uses[1].instant - sim.began < soonest + 1.2


def test_units_that_many_processes_estimate_too_high_are_all_used(simulate: Any) -> None:
    """What calls did not spend goes at once to those that already hold permits for later."""

    def make(_: Simulator, store: Any) -> TokenBucket:
        return TokenBucket(None, 3, max_cost=3000, cost=Metered(), share="units", store=store)

    sim = simulate(processes=20, make=make)

    async def serve(_: Process) -> httpx.Response:
        await sleep(0.05)
        return httpx.Response(200)

    async def send(process: Process) -> None:
        while True:
            estimate = sim.chance.uniform(100, 1000)
            await process.request(cost=estimate, real=0.6 * estimate)

    sim.serve = serve
    for process in sim.processes:
        process.spawn(send(process))
    sim.run(30)
    assert sum(use.cost for use in sim.uses if use.instant >= sim.began + 5) >= 0.9 * 1000 * 25
    assert {use.process for use in sim.uses} == set(range(20))


def test_units_that_cancelled_calls_return_never_let_more_go_together_than_the_bucket_holds(
    simulate: Any,
) -> None:
    def make(_: Simulator, store: Any) -> Any:
        return TokenBucket(None, 60, max_cost=100, share="team", store=store)

    sim = simulate(processes=7, latency=REDIS, make=make)
    sim.max_cost, tasks = 100.0, []
    for process in sim.processes:
        tasks.append(process.spawn(process.request(cost=100.0)))
        sim.run(0.05)
    sim.run(1)
    for number in (1, 2):
        sim.at(0.0, tasks[number].cancel, sim.processes[number])
    sim.run(400)
    instants = [use.instant for use in sim.uses]
    assert len(instants) == 5
    assert all(later - earlier >= 59.0 for earlier, later in pairwise(instants))


@pytest.mark.parametrize("latency", [FILE, FAR])
def test_requests_that_spend_a_whole_bucket_go_whenever_it_is_full(simulate: Any, latency: float) -> None:
    def make(_: Simulator, store: Any) -> Any:
        return TokenBucket(None, 4, max_cost=10, share="team", store=store)

    sim = simulate(processes=1, latency=latency, make=make)
    sim.max_cost = 10.0
    for _ in range(4):
        sim.processes[0].spawn(sim.processes[0].request(cost=10.0))
    sim.run(20)
    assert [use.instant - sim.began for use in sim.uses] == pytest.approx([0, 4, 8, 12], abs=0.4)


@pytest.mark.parametrize("max_requests", [None, 5])
def test_a_bucket_of_units_is_never_overdrawn_however_many_calls_are_cancelled(
    simulate: Any, max_requests: int | None
) -> None:
    def make(_: Simulator, store: Any) -> Any:
        return TokenBucket(max_requests, 20, max_cost=100, share="team", store=store)

    sim = simulate(processes=4, latency=REDIS, make=make)
    sim.max_cost, until = 100.0, sim.now + 100

    async def send(process: Any) -> None:
        while sim.now < until:
            task = process.spawn(process.request(cost=sim.chance.choice([1.0, 10.0, 33.0, 100.0])))
            await sleep(sim.chance.choice([0.01, 0.5, 5.0, 20.0]))
            task.cancel()

    for process in sim.processes:
        for _ in range(3):
            process.spawn(send(process))
    sim.run(130)
    level, before, least = 100.0, sim.began, 0.0
    for use in sorted(sim.uses, key=lambda use: use.instant):
        level, before = min(100.0, level + 5 * (use.instant - before)) - use.cost, use.instant
        least = min(least, level)
    assert least > -5.0
    assert sum(use.cost for use in sim.uses) > 220


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda store: TokenBucket(None, 20, max_cost=10, share="team", store=store), {"max_cost": 1000}),
        (lambda store: TokenBucket(1, 20, share="team", store=store), {"max_requests": 100}),
        (
            lambda store: AimdLimiter(1, 20, penalty_factor=0.5, share="team", store=store),
            {"max_requests": 100},
        ),
        (lambda store: AimdLimiter(1, 20, share="team", store=store), {"max_requests": 1000}),
    ],
    ids=["units", "requests", "plain", "adaptive"],
)
@pytest.mark.parametrize("by", [0, 1])
def test_a_request_that_waits_notices_a_raised_quota_within_two_seconds(
    simulate: Any, make: Callable[[Any], Any], change: dict[str, float], by: int
) -> None:
    sim = simulate(processes=2, latency=REDIS, make=lambda _, store: make(store))
    sim.max_cost = 10.0 if "max_cost" in change else None
    waiting, other = sim.processes
    options = {"cost": 10.0} if sim.max_cost else {}

    async def send() -> None:
        await waiting.request(**options)
        await waiting.request(**options)

    async def join() -> None:
        await other.request(**dict.fromkeys(options, 0.1))

    waiting.spawn(send())
    other.spawn(join())
    sim.run(1)
    sim.at(0.0, lambda: sim.processes[by].policy.update(**change), sim.processes[by])
    sim.run(15)
    assert {use.process: use.instant for use in sim.uses}[0] - sim.began < 4.0


def test_several_limits_let_a_request_go_together(simulate: Any) -> None:
    """100 per second for the group; in each process 60 per second, and at most 8 in flight."""
    most = []

    def make(sim: Simulator, store: Any) -> Any:
        in_flight = InFlight(8)
        return AllOf(
            TokenBucket(100, 1, burst=1, share="team", store=store), TokenBucket(60, 1, burst=1), in_flight
        )

    sim = simulate(rate=100.0, make=make)
    busy = dict.fromkeys(sim.processes, 0)

    async def serve(process: Any) -> httpx.Response:
        busy[process] += 1
        most.append(busy[process])
        await sleep(sim.chance.uniform(0.02, 0.15))
        busy[process] -= 1
        return httpx.Response(200)

    sim.serve = serve
    for process in sim.processes:
        process.loops(12, 6)
    sim.run(13)
    sim.finish(2, 3, goal=0.85)
    assert max(most) == 8


@pytest.mark.parametrize(
    ("quotas", "burst", "latency", "processes", "seconds"),
    [
        ([(5, 1), (5, 1)], 1, REDIS, 5, 12),
        ([(600, 60), (10, 1)], 1, REDIS, 5, 12),
        ([(10, 1), (600, 60)], 1, 0.01, 1, 12),
        ([(10, 1), (600, 60)], 1, 0.06, 2, 12),
        ([(5, 1), (200, 60)], None, REDIS, 2, 66),
    ],
)
def test_several_shares_let_a_request_go_together(
    simulate: Any, quotas: Any, burst: int | None, latency: float, processes: int, seconds: int
) -> None:
    """All of the slowest share is used, and no more than the others allow, whatever the phase of their calendars."""

    def make(_: Simulator, store: Any) -> Any:
        return AllOf(
            *(
                TokenBucket(most, window, burst=burst, share=f"share {number}", store=store)
                for number, (most, window) in enumerate(quotas)
            )
        )

    sim = simulate(processes=processes, latency=latency, make=make)
    for process in sim.processes:
        process.loops(16 // processes, seconds)
    sim.run(seconds)
    slowest = min(most / window for most, window in quotas)
    goal = 0.97 if latency < FAR else 0.92
    assert sum(sim.per_second(2, seconds - 2)) >= goal * slowest * (seconds - 2) - 1
    for most, window in quotas:
        # Permits are used a little late, and not all equally late.
        assert sim.most_within(window - 0.005 - 2 * latency) <= most


def test_those_that_wait_for_units_waste_no_permits_of_a_share_that_others_use(simulate: Any) -> None:
    """Each of them keeps its place among those that wait for units, and needs one permit of the common share."""
    waiting = 16

    def make(sim: Simulator, store: Any) -> Any:
        common = TokenBucket(60, 3, burst=1, share="requests", store=store)
        units = TokenBucket(None, 3, max_cost=3000, cost=Metered(), share="units", store=store)
        return AllOf(common, units) if len(sim.processes) < waiting else common

    async def send(process: Process) -> None:
        while True:
            await process.request(cost=sim.chance.uniform(100, 1000))

    sim = simulate(processes=waiting + 2, latency=REDIS, make=make)
    for process in sim.processes[:waiting]:
        process.spawn(send(process))
    for process in sim.processes[waiting:]:
        process.loops(3, 30)
    sim.run(30)
    assert sum(sim.per_second(3, 27)) >= 0.9 * 20 * 27
    assert {use.process for use in sim.uses} == set(range(waiting + 2))


def test_requests_of_two_slow_shares_go_beside_those_of_each(simulate: Any) -> None:
    quotas = [(30, 60), (40, 60)]
    kinds = iter([[0, 1], [0], [1]])

    def make(_: Simulator, store: Any) -> Any:
        return AllOf(
            *(TokenBucket(*quotas[kind], burst=1, share=f"share {kind}", store=store) for kind in next(kinds))
        )

    sim = simulate(processes=3, latency=REDIS, make=make)
    for process in sim.processes:
        process.loops(2, 100)
    sim.run(100)
    assert sum(use.process == 0 for use in sim.uses) >= 3


def test_requests_that_wait_for_two_slow_shares_sleep(simulate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    ask = Queue.ask

    def counted(self: Any, turn: Any, now: float) -> Any:
        asked.append(now)
        return ask(self, turn, now)

    def make(_: Simulator, store: Any) -> Any:
        slower = TokenBucket(1, 2, burst=1, share="b", store=store)
        return AllOf(TokenBucket(30, 60, burst=1, share="a", store=store), slower)

    monkeypatch.setattr(Queue, "ask", counted)
    sim = simulate(processes=1, latency=REDIS, make=make)
    sim.processes[0].loops(4, 60)
    sim.run(60)
    assert len(sim.uses) >= 29
    assert 0 < len(asked) < 40 * len(sim.uses)


def test_a_process_held_up_by_its_own_limit_leaves_the_rest_to_others(simulate: Any) -> None:
    def make(sim: Simulator, store: Any) -> Any:
        shared = TokenBucket(100, 1, share="team", store=store)
        return AllOf(TokenBucket(10, 1, burst=1), shared) if len(sim.processes) == 0 else shared

    sim = simulate(rate=100.0, make=make)
    for process in sim.processes:
        process.loops(12, 6)
    sim.run(12)
    sim.finish(2, 3)


def test_members_do_not_refuse_while_the_burst_is_free(simulate: Any) -> None:
    sim = simulate(processes=20, rate=100.0)
    for process in sim.processes:
        process.loops(1, 1)
    sim.run(4)
    before = len(sim.uses)
    process = sim.processes[0]
    tasks = [process.spawn(process.request(max_wait_time=0.2)) for _ in range(10)]
    sim.run(1)
    assert all(task.done() and not task.exception() for task in tasks)
    assert len(sim.uses) == before + 10


def test_an_adaptive_group_uses_the_quota_and_is_rarely_refused(simulate: Any) -> None:
    def make(_: Simulator, store: Any) -> Any:
        return AimdLimiter(100, 1, share="team", store=store)

    sim = simulate(processes=5, rate=100.0, make=make)
    level, at = 12.0, sim.now
    answers: list[tuple[float, int]] = []

    async def serve(_: Any) -> httpx.Response:
        nonlocal level, at
        await sleep(sim.chance.uniform(0.01, 0.05))
        level, at = min(12.0, level + (sim.now - at) * 60), sim.now
        is_accepted = level >= 1
        level -= is_accepted
        answers.append((sim.now, 200 if is_accepted else 429))
        return httpx.Response(200) if is_accepted else httpx.Response(429, headers={"Retry-After": "1"})

    sim.serve = serve
    for process in sim.processes:
        process.loops(3, 20)
    sim.run(25)
    late = [status for instant, status in answers if sim.began + 10 <= instant < sim.began + 20]
    assert late.count(200) >= 0.6 * 60 * 10
    assert late.count(429) <= 0.05 * late.count(200)
    for refused in [instant for instant, status in answers if status == 429]:
        assert not [use for use in sim.uses if refused + 0.4 < use.instant < refused + 1.0]
    assert not any(process.waiting for process in sim.processes)


def test_the_same_seed_gives_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            sim = Simulator(7, processes=0, losses=0.05)
            install(sim, patch)
            for _ in range(3):
                sim.start().crowd(5, 2, lambda sim=sim: sim.chance.expovariate(2), 0.3)  # type: ignore[misc]
            sim.run(3)
            runs.append([(use.instant, use.process, use.low) for use in sim.uses])
            sim.end()
    assert runs[0] == runs[1]
    assert len(runs[0]) > 100


def test_a_process_that_is_alone_keeps_to_its_window_however_late_the_answers_are(simulate: Any) -> None:
    sim = simulate(latency=0.1, processes=1)
    sim.processes[0].loops(16, 6)
    sim.run(10)
    assert sim.most_within(sim.window) <= sim.rate * sim.window
    assert sum(sim.per_second(2, 4)) >= 0.95 * sim.rate * 4


@pytest.mark.parametrize(("tasks", "goal"), [([6], 0.95), ([1], 0.95), ([2, 30], 0.95)])
def test_few_requests_use_the_quota_of_a_store_that_is_far_away(
    simulate: Any, tasks: list[int], goal: float
) -> None:
    """They hold permits for the next ones, so that these need not wait for its answer."""
    sim = simulate(latency=0.1, processes=len(tasks), burst=1.0)
    for process, number in zip(sim.processes, tasks, strict=True):
        process.loops(number, 6)
    sim.run(12)
    sim.finish(2, 4, goal=0.0)
    assert sum(sim.per_second(2, 4)) >= goal * sim.rate * 4
    assert sim.state.returned <= 0.1 * sim.state.leased
    assert sim.fairness(2, 4) > 0.97
