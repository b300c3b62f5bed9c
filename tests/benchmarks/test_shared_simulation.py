"""A group that shares what it learns: hardly any refusals when alone, and its share when others use the quota too."""

from dataclasses import replace

from benchmarks.adaptive.scenario import Scenario
from benchmarks.adaptive.simulation import Trace, simulate
from benchmarks.adaptive.strategies import HALF_SHARED, SHARED

SMALL = Scenario(processes=5, workers=2, window=20.0, windows=8, cold=4)
HALVES = Scenario(processes=6, workers=2, window=20.0, windows=6, cold=4)


def counts(trace: Trace, scenario: Scenario) -> tuple[int, int, list[int]]:
    """Accepted, refused, and accepted of each process, after the cold start."""
    arrivals = [arrival for arrival in trace.arrivals if arrival.time >= scenario.steady]
    accepted = [arrival for arrival in arrivals if arrival.accepted]
    each = [sum(one.process == number for one in accepted) for number in range(scenario.processes)]
    return len(accepted), len(arrivals) - len(accepted), each


def test_a_group_alone_uses_the_quota_with_hardly_a_refusal() -> None:
    scenario = replace(SMALL, server="sliding")
    accepted, refused, each = counts(simulate(scenario, SHARED, seed=1), scenario)
    allowed = scenario.allowed(scenario.steady, scenario.end)
    assert accepted >= 0.92 * allowed, "0.94 on average of many seeds"
    assert refused <= 0.015 * accepted
    assert sum(each) ** 2 / (len(each) * sum(one**2 for one in each)) >= 0.995, "Jain's index"


def test_a_group_finds_a_quota_that_halves_with_few_refusals() -> None:
    scenario = replace(SMALL, step=0.5)
    accepted, refused, _ = counts(simulate(scenario, SHARED, seed=1), scenario)
    assert accepted >= 0.93 * scenario.allowed(scenario.steady, scenario.end)
    assert refused <= 0.03 * accepted


def test_a_group_keeps_its_share_beside_outsiders() -> None:
    scenario = replace(HALVES, server="bucket")
    accepted, _, each = counts(simulate(scenario, HALF_SHARED, seed=1), scenario)
    assert 0.35 <= sum(each[3:]) / accepted <= 0.65


def test_a_group_is_never_refused_by_a_server_that_describes_its_window() -> None:
    scenario = Scenario(headers="ietf", processes=4, workers=4, windows=3, cold=2)
    accepted, refused, each = counts(simulate(scenario, HALF_SHARED, seed=1), scenario)
    assert refused == 0
    assert accepted >= 0.97 * scenario.allowed(scenario.steady, scenario.end)
    assert 0.35 <= sum(each[2:]) / accepted <= 0.65


def test_a_group_uses_the_quota_from_the_first_window_on() -> None:
    scenario = Scenario(headers="ietf", windows=2, cold=0, processes=10, workers=1)
    accepted, refused, _ = counts(simulate(scenario, SHARED, seed=1), scenario)
    assert refused == 0
    assert accepted >= 0.93 * scenario.allowed(0.0, scenario.end)
