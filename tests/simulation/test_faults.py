"""The simulator notices what it is there to notice: faults planted in the store's step and in its members."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from stkai.stores import Ask, Lease, _share, _step
from stkai.transports._limits.sources.holding import Holding

from . import simulator
from .process import install
from .simulator import Simulator

Patch = pytest.MonkeyPatch


def drop_what_is_given_back(patch: Patch) -> None:
    patch.setattr(_share, "release", lambda *_: None)


def lease_each_place_twice(patch: Patch) -> None:
    real: Any = vars(_step)["allocate"]
    turn = itertools.count()

    def allocate(state: Any, *arguments: Any) -> Any:
        before = state.next, state.credit
        found = real(state, *arguments)
        if next(turn) % 2:
            state.next, state.credit = before
        return found

    patch.setattr(_step, "allocate", allocate)
    patch.setattr("stkai.stores._step.add_to_window", lambda *_: None)


def forget_units(patch: Patch) -> None:
    def use(holding: Holding, *_: float) -> None:
        del holding.due[0]
        holding.used += 1

    patch.setattr(Holding, "use", use)


def believe_messages_that_were_overtaken(patch: Patch) -> None:
    real, numbers = _step.step, itertools.count(1)

    def step(state: Any, ask: Ask, now: float) -> Lease:
        return real(state, ask._replace(seq=next(numbers)), now)

    patch.setattr(simulator, "step", step)


def play(
    patch: Patch, plant: Callable[[Patch], None] | None, seed: int = 1, max_cost: float | None = None
) -> None:
    """A few seconds with costs, impatience, and messages that arrive twice."""
    with patch.context() as context:
        sim = Simulator(seed, processes=0, rate=50.0, max_cost=max_cost, echoes=0.2)
        install(sim, context)
        if plant is not None:
            plant(context)
        try:
            for _ in range(2):
                process = sim.start()
                process.crowd(10, 5, lambda: sim.chance.expovariate(3))
                process.loops(5, 5, cost=3.0)
            sim.run(8)
            sim.finish(0, 4, goal=0.0, excess=0.1)
            spent = sum(use.cost for use in sim.uses)
            sim.check(max_cost is None or spent <= 8 * max_cost, f"{spent} units were spent in 8 s")
        finally:
            sim.end()


def test_without_a_fault_there_is_nothing_to_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    for max_cost in (None, 40.0):
        play(monkeypatch, None, max_cost=max_cost)


@pytest.mark.parametrize(
    "plant",
    [drop_what_is_given_back, lease_each_place_twice, forget_units, believe_messages_that_were_overtaken],
)
def test_a_planted_fault_is_noticed(monkeypatch: pytest.MonkeyPatch, plant: Callable[[Patch], None]) -> None:
    with pytest.raises(AssertionError):
        play_some_seeds(monkeypatch, plant)


def play_some_seeds(patch: Patch, plant: Callable[[Patch], None]) -> None:
    for seed in range(1, 4):  # It takes some luck to see that permits are not given back.
        play(patch, plant, seed, max_cost=40.0 if plant is forget_units else None)
