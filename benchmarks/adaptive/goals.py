"""What the adaptive limiter is to reach, and whether it does: the worst scenario of each row decides."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stkai._cli.report import ratio

from .metrics import Result
from .runner import Case
from .scenario import SERVERS, Scenario
from .strategies import ADAPTIVE, NO_LIMITER, Strategy

Results = Mapping[Case, Result]


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure of a case, and the value that it may not pass."""

    label: str
    read: Callable[[Results, Case], float]
    limit: float
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def worst(self, results: Results, cases: Sequence[Case]) -> tuple[float, Case]:
        """The value that is furthest on the wrong side, and whose it is."""
        pick = min if self.at_least else max
        return pick(((self.read(results, case), case) for case in cases), key=operator.itemgetter(0))

    def __str__(self) -> str:
        return f"{self.label} {'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Goal:
    """Scenarios, and what must hold in every one of them, as the mean of all seeds."""

    title: str
    scenarios: Sequence[Scenario]
    bounds: Sequence[Bound]

    def cases(self, strategy: Strategy) -> list[Case]:
        return [(scenario, strategy) for scenario in self.scenarios]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One bound of one goal, what was measured, and in which scenario."""

    goal: str
    bound: Bound
    value: float
    scenario: Scenario

    @property
    def met(self) -> bool:
        return self.bound.met_by(self.value)


def _goodput(limit: float) -> Bound:
    return Bound("goodput", lambda results, case: results[case].steady.goodput, limit, at_least=True)


def _refused(limit: float) -> Bound:
    return Bound("429/success", lambda results, case: results[case].steady.refused_per_success, limit)


def _cold_refused(limit: float) -> Bound:
    return Bound("429/success, cold", lambda results, case: results[case].cold.refused_per_success, limit)


def _jain(limit: float) -> Bound:
    return Bound("Jain", lambda results, case: results[case].steady.jain or 0.0, limit, at_least=True)


def _failed(limit: float) -> Bound:
    return Bound("failed", lambda results, case: results[case].steady.failed_share, limit)


def _p95(limit: float) -> Bound:
    return Bound("p95 s", lambda results, case: results[case].steady.p95, limit)


def _regained(limit: float) -> Bound:
    return Bound("windows to regain", lambda results, case: results[case].regained or 0.0, limit)


def _p95_of_no_limiter(limit: float) -> Bound:
    def read(results: Results, case: Case) -> float:
        return ratio(results[case].steady.p95, results[case[0], NO_LIMITER].steady.p95)

    return Bound("p95 / p95 without limiter", read, limit)


HALF_LOAD = [Scenario(server=server, processes=number, load=0.5) for number in (3, 10) for server in SERVERS]
HEADERS = [Scenario(processes=number, headers="ietf") for number in (3, 10, 20)]

GOALS = (
    Goal("fixed, N = 10", [Scenario()], [_goodput(0.98), _refused(0.05), _jain(0.95), _failed(0)]),
    Goal(
        "sliding and bucket, N = 10",
        [Scenario(server="sliding"), Scenario(server="bucket")],
        [_goodput(0.96), _refused(0.065), _jain(0.92), _failed(0.002)],
    ),
    Goal(
        "all servers, N <= 5",
        [Scenario(server=server, processes=number) for number in (1, 2, 3, 5) for server in SERVERS],
        [_goodput(0.96), _refused(0.025), _jain(0.92), _failed(0)],
    ),
    Goal(
        "all servers, N = 20",
        [Scenario(server=server, processes=20) for server in SERVERS],
        [_goodput(0.96), _refused(0.14), _jain(0.88), _failed(0.04)],
    ),
    Goal("the quota halves", [Scenario(server=server, step=0.5) for server in SERVERS], [_regained(3.5)]),
    Goal("the quota doubles", [Scenario(server=server, step=2.0) for server in SERVERS], [_regained(5)]),
    Goal("arrivals at 0.5 of the quota", HALF_LOAD, [_refused(0), _p95_of_no_limiter(1.05)]),
    Goal(
        "arrivals at 0.9, N = 10",
        [Scenario(server=server, load=0.9) for server in SERVERS],
        [_p95(10), _refused(0.1), _failed(0.002)],
    ),
    Goal(
        "Retry-After absent, or constant 5 s, N = 10",
        [Scenario(server=server, retry_after=value) for value in (None, 5.0) for server in SERVERS],
        [_refused(0.07), _failed(0.005)],
    ),
    Goal("headers, N <= 20", HEADERS, [_goodput(0.97), _refused(0.002), _jain(0.96)]),
    Goal(
        "headers, the quota halves or doubles",
        [Scenario(headers="ietf", step=step) for step in (0.5, 2.0)],
        [_regained(1)],
    ),
    Goal("cold start, N = 10", [Scenario(server=server) for server in SERVERS], [_cold_refused(0.13)]),
)


def needed_cases(strategy: Strategy = ADAPTIVE) -> list[Case]:
    """All that must be run before the goals can be judged."""
    cases = [case for goal in GOALS for case in goal.cases(strategy)]
    return cases + [(scenario, NO_LIMITER) for scenario in HALF_LOAD]


def judge(results: Results, strategy: Strategy = ADAPTIVE) -> list[Verdict]:
    """The worst scenario of every bound of every goal."""
    verdicts = []
    for goal in GOALS:
        for bound in goal.bounds:
            value, (scenario, _) = bound.worst(results, goal.cases(strategy))
            verdicts.append(Verdict(goal.title, bound, value, scenario))
    return verdicts
