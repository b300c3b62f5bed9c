"""Property test: the step in Python, in Lua, and through a file gives the same answers."""

import math
import os
import random
from dataclasses import astuple
from typing import Any

import pytest

from stkai.stores import Ask, GroupRate, Refusal, _redis
from stkai.stores._share import State
from stkai.stores._step import amend, forget, look, step

from ..support.redis_servers import Server
from .clients import OnClock

SEQUENCES = int(os.environ.get("STKAI_TEST_SEQUENCES", "8"))
"""How many sequences to try, of up to 200 steps each."""


class InLua:
    """The script, run by a real server on a clock that the test sets."""

    def __init__(self, client: Any) -> None:
        self.now = 0.0
        self.store = _redis.RedisStore(OnClock(client, lambda: self.now), timeout=10.0)


class Group:
    """Members that report plausible totals, and now and then nonsense."""

    def __init__(self, chance: random.Random, share: str) -> None:
        self.chance, self.share, self.seq = chance, share, 0
        self.quota: dict[str, Any] = {
            "rate": chance.choice([5.0, 5.0, 50.0, 1000.0, 1 / 7]),
            "burst": chance.choice([1.0, 4.0, 2.5, 60.0]),
            "window": chance.choice([0.0, 1.0, 4.0]),
        }
        if chance.random() < 0.4:
            self.quota |= {"max_cost": 100.0, "cost_rate": 100 / 6}
        self.totals: dict[str, list[float]] = {}
        self.leases: dict[str, int] = {}

    def ask(self, epoch: int, now: float) -> Ask:
        chance, self.seq = self.chance, self.seq + 1
        member = f"m{chance.randrange(6)}"
        totals = self.totals.setdefault(member, [0, 0, 0.0])
        totals[0] += chance.choice([0, 1, 2, 5, -1])
        totals[1] += chance.choice([0, 0, 0, 1])
        totals[2] += chance.choice([0.0, 0.0, 1.5, 33.0])
        want = chance.choice([0, 1, 1, 1, 3, 20])
        costs = (
            tuple(chance.choice([0.0, 10.0, 33.3, 250.0]) for _ in range(want))
            if "max_cost" in self.quota
            else ()
        )
        refusal = Refusal(max(0, epoch - chance.choice([0, 0, 1])), chance.uniform(0, 3))
        ask = Ask(
            share=self.share,
            member=member,
            **self.quota,
            started=chance.choice([1.0, 1.0, 2.0]),
            age=chance.choice([now, now, 5.0]),
            seq=self.seq - (chance.choice([7, 1]) if chance.random() < 0.1 else 0),
            lease_id=self.leases.get(member, 0) if chance.random() < 0.9 else 3,
            used=int(totals[0]),
            lapsed=int(totals[1]),
            delay=chance.choice([0.0, 0.0, 0.02, 0.7]),
            unsent=chance.choice([0.0, 0.0, 0.3, 3.0]),
            held=chance.choice([0, 1, 9]),
            want=want,
            waiting=chance.choice([0, want]),
            low=chance.random() < 0.2,
            costs=costs,
            units_used=totals[2],
            units_new=chance.choice([0.0, 0.0, 5.0]),
            units=chance.choice([0.0, 3.0]),
            own=chance.choice([0, 0, 0, 0, 0, 0, 3]),
            own_seconds=2.0,
            queue=chance.choice([0.2, 100.0]),
            refused=refusal if chance.random() < 0.05 else None,
            leaving=chance.random() < 0.03,
        )
        if chance.random() < 0.05:
            return ask._replace(rate=self.quota["rate"] * chance.choice([0.5, 2.0]), methods="POST", age=0.0)
        return ask


def agree(one: Any, other: Any) -> bool:
    """Whether these are the same, but for the last digits of numbers."""
    if isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(agree, one, other))
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-6) if isinstance(other, float) else one == other


def check_one_sequence(lua: InLua, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - nothing here is a secret
    group = Group(chance, f"share {seed}")
    now = lua.now = chance.choice([0.5, 1234.5, 1.79e9])
    state = stored = None
    epoch = 0
    for number in range(chance.choice([3, 10, 30, 200])):
        now += chance.choice([0.0, 0.001, 0.02, chance.expovariate(5), chance.expovariate(0.2)])
        # Sometimes the clock is set back, by more or less than the state tolerates.
        now -= chance.choice([0.05, 2.0, 3600.0]) if now > 1e4 and chance.random() < 0.02 else 0.0
        lua.now = now - (0.09 if chance.random() < 0.02 else 0.0)
        if state is None or stored is None:
            state, stored = State.new(lua.now), State.new(lua.now)
        ask = group.ask(epoch, now)
        expected = step(state, ask, lua.now)
        group.leases[ask.member] = expected.id
        found = lua.store.lease(ask)
        assert agree(astuple(found), astuple(expected)), (seed, number, ask, found, expected)
        assert step(stored, ask, lua.now) == expected, (seed, number, ask)
        stored = State.unpack(stored.pack())
        epoch = expected.epoch
        if chance.random() < 0.1:
            version = state.version - (chance.random() < 0.2)
            law = GroupRate(ask.share, chance.uniform(0.2, 40), chance.uniform(1, 5), '{"t": "é"}', version)
            given = epoch - (chance.random() < 0.2)
            done = amend(state, given, law, lua.now)
            assert lua.store.amend(given, law) is done
            assert amend(stored, given, law, lua.now) is done
        if chance.random() < 0.1:
            seen = look(state, lua.now)
            assert agree(lua.store.look(ask.share), seen), (seed, number, seen)
            assert look(stored, lua.now) == seen
        if chance.random() < 0.02:
            was_used = bool(state.rate)
            assert lua.store.reset(ask.share) is was_used
            assert lua.store.look(ask.share) is None
            assert forget(state, lua.now) is forget(stored, lua.now) is was_used


@pytest.mark.no_cover
def test_python_and_lua_agree_on_random_sequences(server: Server) -> None:
    with server.client() as client:
        lua = InLua(client)
        # In number 122, a window holds more permits than a smaller quota allows.
        for seed in {*range(SEQUENCES), 122}:
            check_one_sequence(lua, seed)
