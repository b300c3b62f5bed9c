"""Property test: the ticket clocks in Python and in Lua give the same answers."""

import os
import random
from typing import Any

import pytest

from stkai.stores import Ask, Known, Law, Refusal, _redis, _tickets
from stkai.stores._members import KnownMembers
from stkai.stores._record import SLOT, PackedMembers, Record, unpack
from stkai.stores._tickets import State

from ..support.redis_servers import Server

SEQUENCES = int(os.environ.get("STKAI_TEST_SEQUENCES", "150"))
"""How many sequences to try, of up to 200 steps each; 100,000 take half an hour per server."""


class InLua:
    """The script, run by a real server on a clock that the test sets."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.digest = client.script_load(_redis._script()[0])
        self.store = _redis.RedisStore(client)
        self.store._run = self._run  # type: ignore[method-assign]
        self.now = 0.0

    def _run(self, share: str, verb: str, *arguments: str) -> Any:
        keys = _redis._keys(share)
        return self.client.evalsha(self.digest, len(keys), *keys, verb, repr(self.now), *arguments)


def random_ask(chance: random.Random, share: str, epoch: int) -> Ask:
    """A random question; some come from a member that was given another quota."""
    rate = chance.choice([5.0, 5.0, 5.0, 5.0, 50.0, 1000.0, 1 / 7])
    costly = chance.random() < 0.3
    want = chance.choice([0, 1, 1, 1, 3, 20])
    refused = Refusal(max(0, epoch - chance.choice([0, 0, 1])), chance.uniform(0, 3))
    return Ask(
        share=share,
        rate=rate,
        burst=chance.choice([1.0, 1.0, 4.0, 2.5]),
        started=float(chance.randrange(4)),
        member=f"m{chance.randrange(6)}",
        want=want,
        costs=tuple(chance.choice([0.0, 10.0, 33.3, 250.0]) for _ in range(want)) if costly else (),
        settle=chance.choice([0.0, 0.0, -20.0, 15.5]),
        back=tuple(chance.uniform(-0.5, 3) for _ in range(chance.choice([0, 0, 0, 1, 4]))),
        refused=refused if chance.random() < 0.07 else None,
        max_cost=100.0 if costly else None,
        cost_rate=100 / 6 if costly else 0.0,
        waiting=chance.randrange(9),
        known=Known(epoch, chance.uniform(-1, 90), chance.choice([0.0, 2.0]), 3)
        if chance.random() < 0.5
        else None,
    )


def check_one_sequence(lua: InLua, seed: int) -> None:
    chance, share = random.Random(seed), f"share {seed}"  # noqa: S311 - nothing here is a secret
    now = lua.now = chance.choice([0.5, 1234.5, 1.79e9])
    state = packed = None
    epoch = 0
    for _ in range(chance.choice([3, 10, 30, 200])):
        now += chance.choice([0.0, 0.001, 0.02, chance.expovariate(5), chance.expovariate(0.2)])
        # Sometimes the clock is set back, by more or less than the clock tolerates.
        now -= chance.choice([0.05, 2.0, 3600.0]) if now > 1e4 and chance.random() < 0.02 else 0.0
        lua.now = now - (0.09 if chance.random() < 0.02 else 0.0)
        if state is None or packed is None:
            state, packed = State(lua.now, KnownMembers()), State(lua.now, PackedMembers(oldest=lua.now))
        ask = random_ask(chance, share, epoch)
        expected = _tickets.lease(state, ask, lua.now)
        assert lua.store.lease(ask) == expected, (seed, ask)
        assert _tickets.lease(packed, ask, lua.now) == expected, (seed, ask)
        packed = through_a_file(packed, chance.randrange(1000))
        epoch = expected.epoch
        if chance.random() < 0.1:
            version = state.version - (chance.random() < 0.2)
            law = Law(share, chance.uniform(0.2, 40), chance.uniform(1, 5), '{"t": 1.5}', version)
            given = epoch - (chance.random() < 0.2)
            done = _tickets.amend(state, given, law, lua.now)
            assert lua.store.amend(given, law) is done
            assert _tickets.amend(packed, given, law, lua.now) is done
        if chance.random() < 0.1:
            seen = _tickets.look(state, lua.now)
            assert lua.store.look(share) == seen, seed
            assert _tickets.look(packed, lua.now) == seen
        if chance.random() < 0.02:
            lua.store.reset(share)
            assert lua.store.look(share) is None
            state.members, packed.members = KnownMembers(), PackedMembers(oldest=lua.now)
            state, packed = _tickets.forget(state, lua.now), _tickets.forget(packed, lua.now)


def through_a_file(state: State, number: int) -> State:
    record = Record(number, bytes(16), 1.0, state)
    content = record.pack()
    read = unpack(bytes(SLOT) + content if record.offset else content)
    assert read is not None
    assert read.number == number
    return read.state


def test_python_and_lua_agree_on_random_sequences(server: Server) -> None:
    with server.client() as client:
        lua = InLua(client)
        first = random.randrange(10**9)  # noqa: S311
        for seed in range(first, first + SEQUENCES):
            check_one_sequence(lua, seed)


def test_places_move_with_the_rate_of_the_group() -> None:
    state = State(0.0, KnownMembers())
    first = Ask(share="s", rate=1.0, burst=1.0, started=0.0, member="first", want=1)
    waits = [
        _tickets.lease(state, first._replace(member=name), 0.0).wait for name in ("first", "second", "third")
    ]
    assert waits == [0.0, 1.0, 2.0]
    law = Law("s", 10.0, 1.0, "{}", state.version)
    assert _tickets.amend(state, state.epoch, law, 1.0)
    # Two places were still to come, at 2 and 3 s; they now come at 1.1 and 1.2 s.
    assert _tickets.lease(state, first._replace(member="fourth"), 1.0).wait == pytest.approx(0.2)


@pytest.mark.parametrize("members", [KnownMembers, PackedMembers])
def test_a_clock_that_is_set_back_holds_nobody_up(members: Any) -> None:
    state = State(10_000.0, members())
    one = Ask(share="s", rate=10.0, burst=1.0, started=0.0, member="one", want=1)
    other = one._replace(member="other")
    for member in (one, other, one):
        _tickets.lease(state, member, 10_000.0)
    lease = _tickets.lease(state, other, 6400.0)
    assert lease.wait == pytest.approx(0.3)
    assert lease.members == 2
    assert _tickets.lease(state, other, 6400.3).wait == pytest.approx(0.1)
    assert _tickets.lease(state, other, 6411.0).members == 1
