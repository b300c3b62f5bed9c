"""Lets a limiter share its quota with other processes."""

from collections.abc import Callable
from typing import Any

from ..._errors import ConfigurationError
from .limiter import Answer, RateChange, Turn
from .tickets import TicketQueue


class SharingQueue(TicketQueue):
    """A queue of tickets, or a member of a share once it has joined one."""

    _link: Any = None

    def _join_share(
        self, share: str, store: Any, *, burst: float, alone: Callable[[], TicketQueue], pilot: Any = None
    ) -> None:
        """Join the group with this name.

        Raises:
            ConfigurationError: the name is invalid, or there is no such store.
        """
        from ...stores._choose import store_from
        from ...stores._place import check_share
        from .link import Link, identity
        from .member import Member, Terms

        max_cost = self.max_cost
        cost_rate = 0.0 if max_cost is None else max_cost / (self.time_window or 1.0)
        terms = Terms(
            check_share(share),
            self._rate,
            burst,
            self.methods,
            max_cost,
            cost_rate,
            is_cautious=pilot is not None,
        )
        self._link = Link(Member(terms, alone, identity), store_from(store), pilot)

    @property
    def share(self) -> str | None:
        """The name of the quota, if it is shared with other processes."""
        return None if self._link is None else str(self._link.member.terms.share)

    @property
    def store(self) -> Any:
        """The store of the shared quota; None if it is not shared."""
        return None if self._link is None else self._link.store

    @property
    def rate(self) -> float:
        """Requests per second in force now; for the whole group if the quota is shared."""
        known = None if self._link is None else self._link.member.known
        return super().rate if known is None else float(known.rate)

    @property
    def members(self) -> int:
        """The last known number of processes that share the quota, including this one."""
        known = None if self._link is None else self._link.member.known
        return 1 if known is None else int(known.members)

    @property
    def waiting(self) -> int:
        """Requests that hold a ticket and were not sent yet."""
        return super().waiting if self._link is None else int(self._link.member.waiting)

    def subscribe(self, layer: Any) -> None:
        """Report the store's events to the listener of a layer's stack."""
        if self._link is not None:
            self._link.subscribe(layer)

    def ask(self, turn: Turn, now: float) -> Any:
        """Estimated seconds until the turn comes; 0.0 once its permit is taken.

        For a shared quota, it may instead be an operation to carry out first.
        """
        link = self._link
        if link is None:
            return super().ask(turn, now)
        if link.is_interrupted():
            return 0.0
        with link.guard:
            wait = link.member.ask(turn, now)
        return link.operation(turn, now) if wait is None else wait

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Adapt until the store is first reached: until then the number of members is unknown."""
        link = self._link
        if link is None:
            return self._adapt(turn, answer)
        if link.is_interrupted():
            return None
        with link.guard:
            return self._learn_together(turn, answer)

    def _adapt(self, turn: Turn, answer: Answer) -> RateChange | None:
        return super().learn(turn, answer)

    def _learn_together(self, turn: Turn, answer: Answer) -> RateChange | None:
        member = self._link.member
        if member.known is not None:
            return super().learn(turn, answer)
        local: TicketQueue | None = member.local
        return None if local is None else local.learn(turn, answer)

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        """Correct the units that the request took to its real cost."""
        if self._link is None:
            super().settle(turn, cost, now)
            return
        if self._link.is_interrupted():
            return
        with self._link.guard:
            self._settle_together(turn, cost, now)

    def _refund(self, turn: Turn, now: float) -> None:
        if self._link is None:
            super()._refund(turn, now)
        else:
            self._settle_together(turn, 0.0, now)

    def _settle_together(self, turn: Turn, cost: float, now: float) -> None:
        member = self._link.member
        if member.known is None and member.local is not None:
            member.local.settle(turn, cost, now)
        elif self._units is not None:
            cost = self._units.believed(turn.cost, cost)
            member.settle(cost - turn.cost)
            turn.cost = cost

    def leave(self, turn: Turn, now: float) -> None:
        """Give up the place in the queue, or return an unused permit."""
        if self._link is None:
            super().leave(turn, now)
            return
        if self._link.is_interrupted():
            return
        with self._link.guard:
            self._link.member.leave(turn, now)
            self._link.run_errand()


def require_share(share: object, store: object) -> None:
    """Check that a store is given together with the name of a share.

    Raises:
        ConfigurationError: the name is missing.
    """
    if store is not None and share is None:
        raise ConfigurationError(f"store={store!r} needs share=, the name of the quota to share")
