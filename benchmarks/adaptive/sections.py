"""The comparisons of the benchmark: which scenarios, and which strategies in each."""

from collections.abc import Sequence
from dataclasses import dataclass

from .runner import Case
from .scenario import SERVERS, Scenario
from .strategies import (
    ADAPTIVE,
    ALL,
    BALANCED,
    CONCURRENCY,
    FIXED_SHARE,
    HALF_SHARED,
    NO_LIMITER,
    SHARED,
    Strategy,
)

SOME = (NO_LIMITER, FIXED_SHARE, BALANCED, ADAPTIVE)


@dataclass(frozen=True, slots=True)
class Section:
    """Scenarios that belong together, under the strategies that are worth comparing there."""

    name: str
    title: str
    scenarios: Sequence[Scenario]
    strategies: Sequence[Strategy]

    @property
    def cases(self) -> list[Case]:
        """Every scenario under every strategy."""
        return [(scenario, strategy) for scenario in self.scenarios for strategy in self.strategies]


SHARING = Section(
    "sharing",
    "An endless backlog in every process",
    [
        Scenario(processes=3),
        *(Scenario(server=server) for server in SERVERS),
        Scenario(processes=20),
    ],
    ALL,
)

STEPS = Section(
    "steps",
    "The quota halves, or doubles, in mid-run",
    [Scenario(server=server, step=step) for step in (0.5, 2.0) for server in SERVERS],
    SOME,
)

OVERLOAD = [
    Scenario(
        processes=number,
        in_flight=16,
        busy=busy,
        told=None,
        workers=workers,
        window=1.0,
        windows=90,
        cold=30,
    )
    for busy in (429, 503, None)
    for number, workers in ((1, 32), (3, 16), (10, 4))
]

RANDOM = [
    Scenario(
        processes=1,
        refused=refused,
        retry_after=None,
        told=None,
        quota=workers,
        workers=workers,
        window=1.0,
        windows=180,
        cold=60,
        service=(0.5, 1.5),
    )
    for refused, workers in ((0.02, 64), (0.05, 8), (0.1, 8), (0.3, 8))
]

SECTIONS = (
    SHARING,
    Section(
        "numbers",
        "From one process to fifty",
        [Scenario(server=server, processes=number) for number in (1, 2, 5, 50) for server in SERVERS],
        SOME,
    ),
    Section(
        "quotas",
        "Other quotas and windows",
        [
            Scenario(quota=20),
            Scenario(quota=1000),
            # Seconds are short: run for as many minutes as elsewhere, so that what takes time to learn is learnt.
            Scenario(quota=10, window=1.0, windows=1200, cold=300),
        ],
        SOME,
    ),
    Section(
        "arrivals",
        "Requests arrive at random (Poisson), not in an endless backlog",
        [Scenario(server=server, load=load) for load in (0.5, 0.9) for server in SERVERS],
        SOME,
    ),
    STEPS,
    Section(
        "late",
        "Half of the processes join in mid-run; figures from then on",
        [Scenario(server=server, late=5) for server in SERVERS],
        SOME,
    ),
    Section(
        "retry-after",
        "The server does not say the true wait in Retry-After",
        [Scenario(server=server, retry_after=value) for value in (None, 5.0, "date") for server in SERVERS],
        SOME,
    ),
    Section(
        "headers",
        "The server describes its fixed window in headers",
        [
            *(Scenario(processes=number, headers="ietf") for number in (3, 10, 20)),
            Scenario(headers="github"),
            *(Scenario(headers="ietf", step=step) for step in (0.5, 2.0)),
        ],
        (ADAPTIVE, SHARED),
    ),
    Section(
        "shared",
        "The quota is shared through a store, by all or by half of the processes",
        [Scenario(server=server) for server in SERVERS],
        (ADAPTIVE, SHARED, HALF_SHARED),
    ),
    Section(
        "overload",
        "The server has no quota, but cannot work on more than 16 requests at a time",
        OVERLOAD,
        (NO_LIMITER, ADAPTIVE, CONCURRENCY),
    ),
    Section(
        "random",
        "The server refuses at random, without `Retry-After`, whatever the rate",
        RANDOM,
        (NO_LIMITER, ADAPTIVE, CONCURRENCY),
    ),
)
