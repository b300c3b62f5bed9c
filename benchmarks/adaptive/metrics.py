"""Computes the figures of a run from its events."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .scenario import Scenario
from .simulation import Trace, simulate
from .strategies import Strategy

_GOOD_USE = 0.9
_GOOD_REFUSED = 0.15
_STEPS_PER_WINDOW = 10


@dataclass(frozen=True, slots=True)
class Summary:
    """How one strategy did. Counts are floats: they may be means of several runs.

    Attributes:
        name: the strategy's name.
        sent: requests that reached the server; each attempt counts.
        succeeded: calls that succeeded.
        refused: 429 responses.
        failed: calls that failed for good.
        goodput: accepted requests as a share of the quota.
        p50: median duration of a successful call in seconds, waiting included.
        p95: the 95th percentile of the same.
        jain: Jain's fairness index across processes: 1.0 if all got the same, 1/n if one got everything.
    """

    name: str
    sent: float
    succeeded: float
    refused: float
    failed: float
    goodput: float
    p50: float
    p95: float
    jain: float | None

    @property
    def refused_per_success(self) -> float:
        """429s per successful call; infinite if every call was refused."""
        return ratio(self.refused, self.succeeded)

    @property
    def failed_share(self) -> float:
        """Failed calls as a share of all finished calls."""
        return self.failed / max(1e-9, self.failed + self.succeeded)


def ratio(part: float, whole: float) -> float:
    """`part / whole`; infinite if only `whole` is zero."""
    if whole:
        return part / whole
    return math.inf if part else 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one run, or the mean of several.

    Attributes:
        cold: the figures of the first windows.
        steady: the figures of the other windows.
        regained: windows from the change of the quota until a whole window had been good again; None without a change.
        accepted: the instants of the accepted requests of the first run, in order.
        batch: the time that the batch took, divided by the time that the quota needs for it; None without a batch.
    """

    cold: Summary
    steady: Summary
    regained: float | None
    accepted: tuple[float, ...]
    batch: float | None = None


def measure(scenario: Scenario, strategy: Strategy, seed: int) -> Result:
    """Simulate once, and take the figures."""
    trace = simulate(scenario, strategy, seed)
    if scenario.batch is not None:
        last = max(call.time for call in trace.calls) + 1e-9
        whole = summarise(trace, scenario, strategy.name, 0.0, last)
        accepted = tuple(arrival.time for arrival in trace.arrivals if arrival.accepted)
        return Result(whole, whole, None, accepted, last / scenario.ideal)
    return Result(
        cold=summarise(trace, scenario, strategy.name, 0.0, scenario.cold * scenario.window),
        steady=summarise(trace, scenario, strategy.name, scenario.steady, scenario.end),
        regained=None if scenario.step is None else windows_to_regain(trace, scenario),
        accepted=tuple(arrival.time for arrival in trace.arrivals if arrival.accepted),
    )


def summarise(trace: Trace, scenario: Scenario, name: str, start: float, end: float) -> Summary:
    """The figures between two instants."""
    arrivals = [arrival for arrival in trace.arrivals if start <= arrival.time < end]
    calls = [call for call in trace.calls if start <= call.time < end]
    accepted = Counter(arrival.process for arrival in arrivals if arrival.accepted)
    seconds = sorted(call.seconds for call in calls if call.succeeded)
    return Summary(
        name=name,
        sent=len(arrivals),
        succeeded=len(seconds),
        refused=len(arrivals) - accepted.total(),
        failed=len(calls) - len(seconds),
        goodput=accepted.total() / scenario.allowed(start, end),
        p50=_percentile(seconds, 0.5),
        p95=_percentile(seconds, 0.95),
        jain=jain_index([accepted[number] for number in range(scenario.processes)]),
    )


def windows_to_regain(trace: Trace, scenario: Scenario) -> float:
    """Windows from the change of the quota until a whole window, begun after the change, had been good again.

    A window is good if at least 90 % of the new quota is used, with at most 0.15 refusals per accepted request. A run
    that never regains the quota counts with all its windows.
    """
    after = round((scenario.end - scenario.middle) / scenario.window)
    for step in range((after - 1) * _STEPS_PER_WINDOW + 1):
        start = scenario.middle + step / _STEPS_PER_WINDOW * scenario.window
        end = start + scenario.window
        outcomes = [arrival.accepted for arrival in trace.arrivals if start <= arrival.time < end]
        accepted = sum(outcomes)
        enough = accepted >= _GOOD_USE * scenario.allowed(start, end)
        if enough and len(outcomes) - accepted <= _GOOD_REFUSED * accepted:
            return step / _STEPS_PER_WINDOW + 1
    return float(after)


def mean(results: Sequence[Result]) -> Result:
    """The mean of runs of one scenario under one strategy."""
    regained = [result.regained for result in results if result.regained is not None]
    batches = [result.batch for result in results if result.batch is not None]
    return replace(
        results[0],
        cold=_mean_summary([result.cold for result in results]),
        steady=_mean_summary([result.steady for result in results]),
        regained=statistics.fmean(regained) if regained else None,
        batch=statistics.fmean(batches) if batches else None,
    )


def _mean_summary(rows: Sequence[Summary]) -> Summary:
    """The mean of each figure; ratios follow from the means, so that a run with more requests weighs more."""
    jains = [row.jain for row in rows if row.jain is not None]
    return Summary(
        name=rows[0].name,
        sent=statistics.fmean(row.sent for row in rows),
        succeeded=statistics.fmean(row.succeeded for row in rows),
        refused=statistics.fmean(row.refused for row in rows),
        failed=statistics.fmean(row.failed for row in rows),
        goodput=statistics.fmean(row.goodput for row in rows),
        p50=statistics.fmean(row.p50 for row in rows),
        p95=statistics.fmean(row.p95 for row in rows),
        jain=statistics.fmean(jains) if jains else None,
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank; nan of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def jain_index(shares: Sequence[int]) -> float | None:
    """1.0 if all got the same, 1/n if one got everything; None if none got anything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None
