"""What is judged of a case, and the goals that are made of it."""

import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from .metrics import Result, ratio
from .runner import Case
from .scenario import Scenario
from .strategies import NO_LIMITER, Strategy

Results = Mapping[Case, Result]


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure of a case, and its bound."""

    label: str
    read: Callable[[Results, Case], float]
    limit: float
    at_least: bool = False
    of_mean: bool = False

    def met_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def judged(self, results: Results, cases: Sequence[Case]) -> tuple[float, Case]:
        """The value that decides, and the worst case."""
        worst, case = self.worst(results, cases)
        if not self.of_mean:
            return worst, case
        return statistics.fmean(self.read(results, other) for other in cases), case

    def worst(self, results: Results, cases: Sequence[Case]) -> tuple[float, Case]:
        """The value that is furthest on the wrong side, and its case."""
        pick = min if self.at_least else max
        return pick(((self.read(results, case), case) for case in cases), key=operator.itemgetter(0))

    def __str__(self) -> str:
        return (
            f"{'mean ' if self.of_mean else ''}{self.label} {'>=' if self.at_least else '<='} {self.limit:g}"
        )


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


def goodput(limit: float) -> Bound:
    return Bound("goodput", lambda results, case: results[case].steady.goodput, limit, at_least=True)


def refused(limit: float) -> Bound:
    return Bound("429/success", lambda results, case: results[case].steady.refused_per_success, limit)


def cold_refused(limit: float) -> Bound:
    return Bound("429/success, cold", lambda results, case: results[case].cold.refused_per_success, limit)


def jain(limit: float) -> Bound:
    return Bound("Jain", lambda results, case: results[case].steady.jain or 0.0, limit, at_least=True)


def failed(limit: float) -> Bound:
    return Bound("failed", lambda results, case: results[case].steady.failed_share, limit)


def p95(limit: float) -> Bound:
    return Bound("p95 s", lambda results, case: results[case].steady.p95, limit)


def regained(limit: float) -> Bound:
    return Bound("windows to regain", lambda results, case: results[case].regained or 0.0, limit)


def p95_of_no_limiter(limit: float) -> Bound:
    def read(results: Results, case: Case) -> float:
        return ratio(results[case].steady.p95, results[case[0], NO_LIMITER].steady.p95)

    return Bound("p95 / p95 without limiter", read, limit)


def time(limit: float) -> Bound:
    return Bound("time / ideal", lambda results, case: results[case].batch or 0.0, limit)


def means(used: float, refusals: float, fairness: float) -> list[Bound]:
    return [replace(bound, of_mean=True) for bound in (goodput(used), refused(refusals), jain(fairness))]
