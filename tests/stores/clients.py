"""A member that reports to a store by hand."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from stkai.stores import Ask, Lease, RedisStore, Store
from stkai.stores._calendar import count, past
from stkai.stores._protocol import AHEAD
from stkai.stores._share import MemberState, State


def ask(member: str = "a", want: int = 1, **others: Any) -> Ask:
    """A first question of a member."""
    fields: dict[str, Any] = {
        "share": "team",
        "rate": 10.0,
        "burst": 1.0,
        "started": 1.0,
        "waiting": want,
        **others,
    }
    return Ask(member=member, want=want, **fields)


def patient_store(url_or_client: Any) -> RedisStore:
    """A store that waits for its server, also on a busy machine."""
    return RedisStore(url_or_client, timeout=10.0)


class Client:
    """A member that uses all permits of its last lease before it asks again.

    Args:
        store: the store that it asks.
        member: its name.
        options: fields of all its questions.
    """

    def __init__(self, store: Store, member: str = "a", **options: Any) -> None:
        self.store, self.member, self.options = store, member, options
        self.used = self.seq = self.lease_id = 0

    def ask(self, want: int = 1, **others: Any) -> Ask:
        """The next question."""
        self.seq += 1
        fields = {"seq": self.seq, "lease_id": self.lease_id, "used": self.used, "queue": 0.25}
        return ask(self.member, want, **{**fields, **self.options, **others})

    def lease(self, want: int = 1, **others: Any) -> Lease:
        """Ask for permits, and use them all."""
        lease = self.store.lease(self.ask(want, **others))
        self.lease_id = lease.id
        self.used += lease.count
        return lease

    def wait(self, want: int = 1, **others: Any) -> float:
        """Ask for permits; returns the seconds until the first may be used."""
        return self.lease(want, **others).ranges[0][0]


class OnClock:
    """A redis-py client whose scripts get the time from `now`, not from the server."""

    def __init__(self, client: Any, now: Callable[[], float]) -> None:
        self.client, self.now, self.connection_pool = client, now, client.connection_pool

    def evalsha(self, digest: str, count: int, *given: Any) -> Any:
        return self.client.evalsha(digest, count, *self._dated(count, given))

    def eval(self, source: str, count: int, *given: Any) -> Any:
        return self.client.eval(source, count, *self._dated(count, given))

    def _dated(self, count: int, given: tuple[Any, ...]) -> list[Any]:
        return [*given[: count + 1], repr(self.now()), *given[count + 2 :]]


def eventually(check: Callable[[], Any], seconds: float = 20) -> Any:
    """Call `check` until it returns something true, ignoring errors of the server; returns that."""
    until = time.monotonic() + seconds
    while True:
        try:
            if found := check():
                return found
        except (redis.RedisError, TimeoutError):
            if time.monotonic() > until:
                raise
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


def check_books(state: State) -> None:
    """Check that no permit was created or lost, and that the state stays within its bounds."""
    members = [MemberState.unpack(packed) for packed in state.members.values()]
    held = [(m.epoch, count(m.old) + count(m.fresh)) for m in members]
    current = sum(permits for epoch, permits in held if epoch == state.epoch)
    assert state.leased == state.used + state.returned + state.expired + current
    assert -1e-6 <= state.credit <= max(1.0, state.burst) + 1e-6
    assert all(places > 0 for _, _, places in state.free)
    assert state.free == sorted(state.free)
    assert state.window == sorted(state.window)
    assert state.active == sum(m.counted for m in members)
    assert state.normal == sum(m.normal for m in members)
    assert state.units_held == pytest.approx(sum(m.units + m.units_fresh for m in members), abs=1e-6)
    assert not state.quota.max_cost or state.units + state.units_held <= state.quota.max_cost + 1e-6
    # No law in these tests has more than twice the quota.
    most = max(1.0, 2 * state.quota.rate * AHEAD, state.quota.burst) + 1
    for m in members:  # Those that became due while a message was in transit do not count.
        later = [places - past(first, gap, places, state.at) for first, gap, places in (*m.old, *m.fresh)]
        assert sum(later) <= most + 1e-6
