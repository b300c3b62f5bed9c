"""Everything that can befall a group, in random order; then it is calm, and all must be as if nothing had happened.

Each drill runs on one seed; STKAI_TEST_SEEDS=200 tries more.
"""

import asyncio
import math
import os
import random
from collections import Counter
from typing import Any

import pytest

from stkai.stores._protocol import LATE

from ..stores.clients import check_books
from .process import Process, install, sleep
from .simulator import Simulator

SEEDS = range(int(os.environ.get("STKAI_TEST_SEEDS", "3")))

SETTLED = 12
"""Seconds of calm after which the members that are no more are forgotten, and outages are over."""


class Drill:
    """A group of a random kind, and what befalls it."""

    def __init__(self, seed: int, patch: pytest.MonkeyPatch) -> None:
        chance = random.Random(seed)  # noqa: S311
        self.units = chance.random() < 0.4
        self.sim = sim = Simulator(
            seed,
            processes=0,
            rate=chance.choice([5.0, 20.0, 50.0]),
            window=chance.choice([1.0, 4.0]),
            burst=chance.choice([1.0, 3.0, None]),
            latency=chance.choice([0.00005, 0.005, 0.02, 0.08]),
            max_cost=1000.0 if self.units else None,
            echoes=chance.choice([0.0, 0.1]),
        )
        install(sim, patch)
        self.ends = sim.now + 8
        self.forked: set[Process] = set()
        for _ in range(chance.choice([1, 2, 5])):
            self.work(sim.start())
        sim.at(0.5, self.trouble)

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.sim.processes if process.is_alive]

    def work(self, process: Process) -> None:
        """Let requests of any kind be sent by tasks with any patience."""
        sim = self.sim
        chance = sim.chance

        async def send() -> None:
            while sim.now < self.ends:
                options: dict[str, Any] = {"priority": chance.choice(["normal", "normal", "normal", "low"])}
                if self.units:
                    cost = chance.choice([1.0, 10.0, 30.0])
                    options |= {"cost": cost, "real": chance.choice([None, cost / 2, cost * 1.5])}
                try:
                    async with asyncio.timeout(chance.choice([0.05, 0.3, 1.0, 99.0])):
                        await process.request(**options)
                except TimeoutError:
                    await sleep(chance.choice([0.0, 0.0, 0.5]))

        for _ in range(chance.choice([1, 4, 12])):
            process.spawn(send())

    def trouble(self) -> None:
        sim = self.sim
        chance = sim.chance
        if sim.now > self.ends:
            return
        process = chance.choice(self.alive)
        match chance.randrange(11):
            case 0 if len(self.alive) > 1:
                process.kill()
            case 1 | 2:
                process.suspend(chance.choice([0.05, 0.3, 1.2, 3.0]))
            case 3:
                self.work(sim.start())
            case 4 if process not in self.forked:  # What a copy has renewed is not renewed in another one.
                child = process.fork()
                self.forked.add(child)
                self.work(child)
            case 5:
                cancel(process)
                self.work(process)
            case 6:
                sim.is_up = False
                sim.at(chance.choice([0.1, 0.4, 1.0, 3.0]), self.repair)
            case 7:
                sim.state = None
            case 8:
                sim.clock_offset += chance.choice([0.05, -0.05, 1.5, -1.5, 3600, -3600])
            case 9:
                sim.losses = 0.3
                sim.at(1.0, self.repair)
            case 10:
                process.run(process.policy.close)
        sim.at(chance.expovariate(3), self.trouble)

    def repair(self) -> None:
        self.sim.is_up, self.sim.losses = True, 0.0

    def calm_down(self) -> None:
        self.repair()
        for process in self.alive:
            process.frozen_until = -math.inf
            cancel(process)
        self.sim.run(0.5)


def cancel(process: Process) -> None:
    for task in process.tasks:
        task.cancel()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_group_is_itself_again_after_whatever_befell_it(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drill = Drill(seed, monkeypatch)
    sim = drill.sim
    try:
        sim.run(8)
        drill.calm_down()
        start, seconds = sim.now - sim.began, SETTLED + 12
        for process in drill.alive:
            process.loops(max(2, math.ceil(10 / len(drill.alive))), seconds, cost=1.0)
        sim.run(seconds)
        sim.uses = [use for use in sim.uses if use.instant >= sim.began + start + SETTLED]
        sent, quota = len(sim.uses), sim.rate * (seconds - SETTLED)
        sim.check(
            0.95 * quota - 1 <= sent <= quota + sim.rate * sim.window + 1, f"{sent} of {quota} were sent"
        )
        most = sim.most_within(sim.window - LATE - 0.005 - 2 * sim.latency)
        sim.check(most <= sim.rate * sim.window + 1, f"{most} were sent in a window")
        counts = Counter(use.process for use in sim.uses)
        index = sent**2 / (len(drill.alive) * sum(count**2 for count in counts.values()))
        sim.check(index > 0.9, f"the processes got {counts}")
        sim.run(30)
        for process in drill.alive:
            sim.check(not process.waiting, "requests wait for ever")
            process.run(process.policy.close)
        sim.run(5)
        assert sim.state is not None
        check_books(sim.state)
        left = sim.state.held, sim.state.members, sim.state.active, sim.state.normal
        sim.check(left == (0, {}, 0, 0), f"the share has {left} when all have left")
    finally:
        sim.end()
