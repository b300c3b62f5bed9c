"""The adaptive limiter's goals, and whether it meets them.

The rows at 100 per 60 s are judged by their worst scenario, the others by the mean of their scenarios unless noted.
None of these other quotas, and none of the seeds, was used for tuning. Those used were: 20 and 5 per
1 s, 60 per 2 s, 50 per 10 s, 400 per 20 s, 100 per 3600 s, 4000 per 60 s, answers of 10 to 60 s, and without numbers
100 per 60 s, 200 per 30 s, 20, 5 and 100 per 1 s, and 60 per 2 s, on the seeds 1 to 8.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .bounds import (
    Goal,
    Results,
    Verdict,
    cold_refused,
    failed,
    goodput,
    jain,
    means,
    p95,
    p95_of_no_limiter,
    refused,
    regained,
    time,
)
from .runner import Case
from .scenario import SERVERS, Scenario
from .silent import SILENT
from .strategies import ADAPTIVE, NO_LIMITER, Strategy


def _shared(
    quotas: Sequence[tuple[int, float]], numbers: Sequence[int] = (1, 3, 10), **options: Any
) -> list[Scenario]:
    """Each quota, on all servers, for some numbers of processes."""
    return [
        Scenario(server=server, processes=number, quota=quota, window=window, **options)
        for quota, window in quotas
        for number in numbers
        for server in SERVERS
    ]


HALF_LOAD = [Scenario(server=server, processes=number, load=0.5) for number in (3, 10) for server in SERVERS]
HEADERS = [Scenario(processes=number, headers="ietf") for number in (3, 10, 20)]

GOALS = (
    Goal("fixed, N = 10", [Scenario()], [goodput(0.98), refused(0.05), jain(0.95), failed(0)]),
    Goal(
        "sliding and bucket, N = 10",
        [Scenario(server="sliding"), Scenario(server="bucket")],
        [goodput(0.96), refused(0.065), jain(0.92), failed(0.002)],
    ),
    Goal(
        "all servers, N <= 5",
        [Scenario(server=server, processes=number) for number in (1, 2, 3, 5) for server in SERVERS],
        [goodput(0.96), refused(0.025), jain(0.92), failed(0)],
    ),
    Goal(
        "all servers, N = 20",
        [Scenario(server=server, processes=20) for server in SERVERS],
        [goodput(0.96), refused(0.14), jain(0.88), failed(0.04)],
    ),
    Goal("the quota halves", [Scenario(server=server, step=0.5) for server in SERVERS], [regained(3.5)]),
    Goal("the quota doubles", [Scenario(server=server, step=2.0) for server in SERVERS], [regained(5)]),
    Goal("arrivals at 0.5 of the quota", HALF_LOAD, [refused(0), p95_of_no_limiter(1.05)]),
    Goal(
        "arrivals at 0.9, N = 10",
        [Scenario(server=server, load=0.9) for server in SERVERS],
        [p95(10), refused(0.1), failed(0.002)],
    ),
    Goal(
        "Retry-After absent, or constant 5 s, N = 10",
        [Scenario(server=server, retry_after=value) for value in (None, 5.0) for server in SERVERS],
        [refused(0.07), failed(0.005)],
    ),
    Goal("headers, N <= 20", HEADERS, [goodput(0.97), refused(0.002), jain(0.96)]),
    Goal(
        "headers, the quota halves or doubles",
        [Scenario(headers="ietf", step=step) for step in (0.5, 2.0)],
        [regained(1)],
    ),
    Goal("cold start, N = 10", [Scenario(server=server) for server in SERVERS], [cold_refused(0.2)]),
    Goal(
        "windows up to 2 s",
        # Eight workers cannot use 50 per second: a call takes a quarter of a second.
        _shared([(3, 1.0), (12, 1.0), (50, 1.0), (30, 2.0)], windows=120, cold=30, workers=16),
        means(0.88, 0.15, 0.95),
    ),
    Goal(
        "windows of 5 to 30 s",
        _shared([(40, 5.0), (500, 10.0), (150, 30.0)], windows=30, cold=10, workers=16),
        means(0.96, 0.02, 0.96),
    ),
    Goal(
        "windows of ten minutes to an hour",
        _shared([(150, 600.0), (300, 3600.0)]),
        [*means(0.97, 0.05, 0.95), failed(0.001)],
    ),
    Goal(
        "10,000 per 60 s",
        [Scenario(processes=number, quota=10_000, windows=4, cold=2, workers=64) for number in (3, 10)],
        means(0.95, 0.003, 0.85),
    ),
    Goal(
        "answers take 5 to 60 s, N = 10",
        [
            Scenario(server=server, service=service, workers=64)
            for service in ((5.0, 30.0), (20.0, 60.0))
            for server in SERVERS
        ],
        means(0.97, 0.08, 0.90),
    ),
    Goal(
        "5 of 10 join late: the five windows after",
        [Scenario(server=server, late=5, windows=10) for server in SERVERS],
        means(0.96, 0.2, 0.93)[2:],
    ),
    Goal(
        "the quota doubles, second edition",
        [Scenario(server=server, step=2.0) for server in SERVERS],
        [replace(regained(3.7), of_mean=True)],
    ),
    Goal(
        "no numbers",
        _shared([(60, 60.0), (500, 60.0), (150, 20.0)], told=None, workers=16, windows=15),
        means(0.90, 0.06, 0.90),
    ),
    Goal(
        "wrong numbers: too high",
        [
            Scenario(server=server, processes=number, told=numbers)
            for numbers in ((1000, 60.0), (300, 60.0))
            for number in (1, 10)
            for server in SERVERS
        ],
        means(0.90, 0.1, 0.90),
    ),
    Goal(
        "a day asked for in every 50th refusal",
        [Scenario(server=server, processes=3, absurd=50, windows=200, cold=100) for server in SERVERS],
        means(0.95, 0.05, 0.95)[::2],
    ),
    Goal(
        "a batch of a half to ten windows",
        [
            scenario
            for windows in (0.5, 2.0, 10.0)
            for scenario in _shared([(12, 1.0), (40, 4.0), (200, 60.0)], (1, 4, 10), batch=windows)
        ],
        [replace(time(1.3), of_mean=True), time(2.6)],
    ),
    Goal(
        "the batch of the demo",
        [Scenario(processes=4, quota=20, window=1.0, batch=8.0, service=(0.01, 0.03))],
        [time(1.25), refused(0.08)],
    ),
    Goal(
        "20 posts in a row, alone: 6 s of the 12 that the quota needs",
        [Scenario(processes=1, workers=1, batch=0.2, service=(0.01, 0.03))],
        [time(0.5)],
    ),
    Goal(
        "16 in flight, no quota, no numbers",
        [
            Scenario(
                processes=number, in_flight=16, told=None, workers=workers, window=1.0, windows=90, cold=30
            )
            for number, workers in ((1, 32), (3, 16), (10, 4))
        ],
        means(0.90, 0.10, 0.0)[:2],
    ),
    *SILENT,
)


def needed_cases(strategy: Strategy = ADAPTIVE) -> list[Case]:
    """All cases needed to judge the goals."""
    cases = [case for goal in GOALS for case in goal.cases(strategy)]
    return cases + [(scenario, NO_LIMITER) for scenario in HALF_LOAD]


def judge(results: Results, strategy: Strategy = ADAPTIVE) -> list[Verdict]:
    """The worst scenario of every bound of every goal."""
    verdicts = []
    for goal in GOALS:
        for bound in goal.bounds:
            value, (scenario, _) = bound.judged(results, goal.cases(strategy))
            verdicts.append(Verdict(goal.title, bound, value, scenario))
    return verdicts
