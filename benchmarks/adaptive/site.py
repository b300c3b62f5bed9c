"""What a strategy finds in its process: the scenario, the server, time and randomness."""

import random
from dataclasses import dataclass

import httpx

from stkai import RetryPolicy
from stkai.stores import MemoryStore

from .scenario import Scenario
from .virtual import TrioClock

RETRY = RetryPolicy(max_retries=3)
"""Four attempts, for every strategy."""

SHORTEST_SLEEP = 0.001
"""Seconds. Real sleeps take longer than nothing; in virtual time, one that rounds to nothing would repeat forever."""


@dataclass(frozen=True, slots=True)
class Site:
    """The surroundings of a strategy in its process.

    Attributes:
        scenario: what is simulated.
        wire: the server, as this process sees it.
        clock: virtual time.
        random: the process's own randomness.
        number: the number of the process, from 0.
        store: where the processes of this run may share a quota.
    """

    scenario: Scenario
    wire: httpx.AsyncBaseTransport
    clock: TrioClock
    random: random.Random
    number: int
    store: MemoryStore
