"""The step of a shared quota under members that are killed, lose messages, repeat them, or report nonsense."""

import copy
import itertools
import os
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from stkai.stores import Ask, GroupRate, Lease, Refusal
from stkai.stores._share import State
from stkai.stores._step import amend, look, step

from .clients import check_books

pytestmark = pytest.mark.no_cover

SEEDS = int(os.environ.get("STKAI_TEST_SEEDS", "1"))

KEPT = 0.05
"""Seconds for which a member keeps a permit after its time."""


@dataclass
class Client:
    """A member that uses permits when they are due, and gives up those whose time has passed."""

    name: str
    lease_id: int = 0
    seq: int = 0
    used: int = 0
    lapsed: int = 0
    units_used: float = 0.0
    units: float = 0.0
    due: list[float] = field(default_factory=list)
    last: Ask | None = None

    def use(self, now: float, chance: random.Random, likely: float = 0.7) -> list[float]:
        """Use some of the permits that are due; returns when."""
        late = [place for place in self.due if place < now - KEPT]
        self.lapsed += len(late)
        del self.due[: len(late)]
        uses = []
        while self.due and self.due[0] <= now + 1e-9 and chance.random() < likely:
            del self.due[0]
            self.used += 1
            self.units_used += 1
            self.units -= 1
            uses.append(now)
        return uses

    def ask(self, quota: dict[str, float], keep: int, want: int, **others: Any) -> Ask:
        self.seq += 1
        del self.due[keep:]
        if not quota.get("max_cost"):
            self.units = 0.0
        fields: dict[str, Any] = {
            "share": "s", "member": self.name, **quota, "seq": self.seq, "lease_id": self.lease_id, "used": self.used,
            "lapsed": self.lapsed, "held": len(self.due), "want": want, "waiting": want + len(self.due),
            "units_used": self.units_used, "units": max(0.0, self.units), "queue": 0.2, **others,
        }  # fmt: skip
        self.last = Ask(**fields)
        return self.last

    def apply(self, lease: Lease, now: float) -> None:
        if lease.void:
            self.due, self.units = [], 0.0
        self.lease_id = lease.id
        self.units += lease.units
        places = [now + first + gap * k for first, gap, size in lease.ranges for k in range(size)]
        self.due = sorted(self.due + places)


def most_within(uses: list[float], seconds: float) -> int:
    """The largest number of uses in any half-open stretch of time."""
    most = left = 0
    for right, instant in enumerate(uses):
        while uses[left] <= instant - seconds + 1e-9:
            left += 1
        most = max(most, right - left + 1)
    return most


@pytest.mark.parametrize("seed", range(12 * SEEDS))
def test_books_balance_whatever_members_send(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    rate, burst = chance.choice([1.0, 5.0, 50.0, 1000.0]), chance.choice([1.0, 5.0, 50.0])
    window, costly = chance.choice([0.0, 1.0, 4.0]), chance.random() < 0.5
    quota = {"rate": rate, "burst": burst, "window": window}
    quota |= {"max_cost": 100.0, "cost_rate": 50.0} if costly else {}
    is_honest = bool(seed % 2)
    now = 100.0
    state = State.new(now)
    clients: dict[int, Client] = {}
    for number in range(300):
        now += chance.expovariate(chance.choice([1, 20, 200]))
        now += chance.choice([5, 20]) if chance.random() < 0.01 else 0
        place = chance.randrange(6)
        client = clients.setdefault(place, Client(f"m{place}"))
        if chance.random() < 0.02:
            client = clients[place] = Client(f"n{number}")  # It was killed; another starts.
        client.use(now, chance)
        want = chance.choice([0, 1, 3, 40])
        others: dict[str, Any] = {"low": chance.random() < 0.2, "age": now - 50}
        if costly:
            others["costs"] = tuple(float(chance.choice([0, 1, 30, 300])) for _ in range(want))
        if chance.random() < 0.03:
            others["refused"] = Refusal(state.epoch - chance.choice([0, 1]), 0.3)
        if chance.random() < 0.03:
            others["leaving"] = True
        previous = client.last
        ask = client.ask(quota, chance.choice([0, 1, 99]), want, **others)
        if not is_honest and chance.random() < 0.1:
            ask = ask._replace(
                lease_id=chance.choice([0, -1, ask.lease_id - 1, 7]),
                used=ask.used + chance.randrange(-3, 9),
                lapsed=ask.lapsed + chance.randrange(-3, 9),
                held=ask.held + 5,
                units=chance.choice([0.0, 50.0]),
            )
        if chance.random() < 0.05:
            law = GroupRate("s", chance.uniform(0.5, 2) * rate, burst, "x", state.version)
            amend(state, state.epoch, law, now)
        answer: Lease | None = None
        for _ in range(chance.choice([1, 1, 1, 2])):  # Some messages arrive twice.
            answer = step(state, ask, now)
            check_books(state)
        if previous is not None and chance.random() < 0.05:
            step(state, previous, now)  # It was overtaken by the later one.
            check_books(state)
        if chance.random() < 0.05 or answer is None:
            continue  # The answer is lost.
        client.apply(answer, now)
        if ask.leaving:
            clients[place] = Client(f"l{number}")
    assert look(state, now) is not None
    assert state.leased > 0


@pytest.mark.parametrize("seed", range(2 * SEEDS))
@pytest.mark.parametrize(
    ("rate", "burst", "window"),
    [(5, 20, 4), (50, 50, 1), (50, 2, 1), (20, 80, 4), (0.5, 6, 12), (0.5, 2, 12)],
)
def test_no_window_has_more_permits_than_promised(
    seed: int, rate: float, burst: float, window: float
) -> None:
    chance = random.Random(seed)  # noqa: S311
    quota = {"rate": float(rate), "burst": float(burst), "window": float(window)}
    state = State.new(100.0)
    clients = [Client(f"m{number}") for number in range(5)]
    clients[0].apply(step(state, clients[0].ask(quota, 0, 0), 100.0), 100.0)
    now = started = 100 + 3 * window  # After a quiet time, the burst is full.
    uses: list[float] = []
    is_busy = seed % 2 > 0
    for number in itertools.count():
        if now >= started + 3 * window:
            break
        then = now + chance.expovariate(max(20.0, 4 * rate))
        while (due := min((c.due[0] for c in clients if c.due), default=then)) < then:
            for client in clients:
                if client.due and client.due[0] == due:
                    used = client.use(due, chance, 1.0 if is_busy else 0.8)
                    uses += used
                    if not used:
                        del client.due[0]
                        client.lapsed += 1
        client, now = chance.choice(clients), then
        keep = 0 if chance.random() < (0.02 if is_busy else 0.1) else 99
        client.apply(step(state, client.ask(quota, keep, chance.choice([1, 8, 40])), now), now)
        if number % 10 == 0:  # What does not balance once, stays so.
            check_books(state)
    uses.sort()
    assert most_within(uses, window) <= rate * window
    if is_busy:
        assert len(uses) >= 0.9 * rate * 3 * window


def test_a_permit_that_was_used_late_stays_in_the_window_for_as_much_longer() -> None:
    quota = {"rate": 5.0, "burst": 5.0, "window": 1.0}
    firsts = []
    for late in (0.0, 0.04):
        state, client, other = State.new(100.0), Client("a"), Client("b")
        client.apply(step(state, client.ask(quota, 0, 0), 100.0), 100.0)
        client.apply(step(state, client.ask(quota, 0, 5), 103.0), 103.0)
        client.used += len(client.due)
        step(state, client.ask(quota, 0, 0, delay=late), 103.1)
        (first, *_), *_ = step(state, other.ask(quota, 0, 5), 103.9).ranges
        firsts.append(103.9 + first)
    assert firsts == pytest.approx([104.0 + 1 / 300, 104.04 + 1 / 300])


def test_units_that_a_member_spends_with_its_first_permits_are_not_leased_to_another() -> None:
    quota = {"rate": 50.0, "burst": 1.0, "window": 1.0, "max_cost": 100.0, "cost_rate": 100.0}
    state, uses = State.new(100.0), list[tuple[float, float]]()
    for name, costs in (("first", (10.0, 100.0, 0.0, 10.0, 1.0)), ("second", (10.0, 10.0, 10.0))):
        ask = Client(name).ask(quota, 0, len(costs), costs=costs)
        places = [first + gap * k for first, gap, size in step(state, ask, 100.0).ranges for k in range(size)]
        uses += zip(places, costs, strict=False)
    assert len(uses) >= 4
    level, before = 100.0, 0.0
    for instant, cost in sorted(uses):
        level, before = min(100.0, level + 100.0 * (instant - before)) - cost, instant
        assert level >= -1e-3


def test_a_message_that_arrives_twice_changes_nothing() -> None:
    state = State.new(0.0)
    client = Client("a")
    ask = client.ask({"rate": 10.0, "burst": 5.0}, 0, 3)
    first = step(state, ask, 1.0)
    again = step(state, ask, 1.0)
    assert (again.id, again.count, again.void) == (first.id, 0, True)
    assert (state.leased, state.returned) == (3, 0)
    client.apply(first, 1.0)
    client.use(1.0, random.Random(1), 1.0)  # noqa: S311
    later = step(state, client.ask({"rate": 10.0, "burst": 5.0}, 9, 1), 1.1)
    assert not later.void
    assert (state.used, state.held) == (1, 3)


def test_a_message_that_a_later_one_overtook_changes_nothing() -> None:
    state = State.new(0.0)
    client = Client("a")
    quota = {"rate": 50.0, "burst": 20.0}
    client.apply(step(state, client.ask(quota, 0, 9), 1.0), 1.0)
    stale = client.ask(quota, 7, 0)._replace(used=2, held=7)
    client.used, client.due = 9, []
    step(state, client.ask(quota, 0, 0), 1.3)
    before = state.credit, state.used, state.returned
    assert step(state, stale, 1.3).void
    assert (state.credit, state.used, state.returned) == before


def test_what_was_sent_in_an_outage_is_charged_once_though_an_answer_is_lost() -> None:
    state = State.new(0.0)
    client = Client("a")
    quota = {"rate": 50.0, "burst": 20.0}
    client.apply(step(state, client.ask(quota, 0, 0), 1.0), 1.0)
    step(state, client.ask(quota, 0, 0, own=5), 2.0)  # Its answer is lost.
    client.apply(step(state, client.ask(quota, 0, 0, own=7), 2.1), 2.1)
    assert (state.leased, state.used) == (7, 7)
    client.apply(step(state, client.ask(quota, 0, 0, own=2), 3.0), 3.0)
    assert (state.leased, state.used) == (9, 9)


def test_a_long_outage_does_not_make_the_state_large() -> None:
    state = State.new(0.0)
    client = Client("a")
    quota = {"rate": 5.0, "burst": 1.0, "window": 10.0}
    client.apply(step(state, client.ask(quota, 0, 0), 1.0), 1.0)
    lease = step(state, client.ask(quota, 0, 1, own=100_000, own_seconds=20_000.0), 20_001.0)
    assert state.used == 100_000
    assert 50 <= sum(places for _, places in state.window) <= 55
    assert lease.ranges[0][0] > 0  # The last window is full.


def test_an_older_state_that_is_restored_gives_no_permit_again() -> None:
    """Redis restarts from its last snapshot, or a replica that lagged takes over."""
    state = State.new(0.0)

    def asked(now: float, last: Lease | None = None, **fields: Any) -> Lease:
        known: dict[str, Any] = {} if last is None else {"lease_id": last.id, "used": last.count}
        return step(state, Ask("team", 4.0, 40.0, "a", window=10.0, age=now, **known, **fields), now)

    first = asked(0.0, seq=1)
    snapshot = copy.deepcopy(state)
    burst = asked(10.0, first, seq=2, want=40, waiting=40)
    assert burst.count == 40
    state = snapshot
    lease = asked(11.0, burst, seq=3, want=40, waiting=40, queue=burst.queue - 1.0)
    assert lease.ranges[0][0] >= 8.5
