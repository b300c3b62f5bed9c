"""A sender at an adaptive pace, in virtual time: asks its queue for permits, and tells it what the server answered."""

from datetime import UTC, datetime
from typing import Any

import httpx

from stkai.transports import Answer, RateChange, Turn
from stkai.transports._limits.pace.headers import Reading
from stkai.transports._limits.pace.quota import KnownQuota
from stkai.transports._limits.pace.silent_rate import SilentServerRate
from stkai.transports._limits.pace.start import Found
from stkai.transports._limits.queue import Queue
from stkai.transports._limits.sources.adaptive import AdaptiveRate

QUOTA = 100 / 60
"""Requests per second of the quota of most tests: 100 per minute."""


def date() -> datetime:
    return datetime(2030, 1, 1, tzinfo=UTC)


def answered(status: int, now: float, *, sent: float | None = None, **headers: str) -> Answer:
    """The answer to a request that was sent at `sent`, or at the same instant."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(now if sent is None else sent, now, httpx.Response(status, headers=named), None, date, 0.5)


def quota_headers(reading: Reading | None) -> dict[str, str]:
    """The headers in which a server describes this quota."""
    if reading is None:
        return {}
    name, limit, remaining, reset, window = reading
    return {
        "RateLimit-Policy": f'"{name}";q={limit:.3f};w={window:.3f}',
        "RateLimit": f'"{name}";r={remaining:.3f};t={reset:.3f}',
    }


class Sender:
    """One process at an adaptive pace; without numbers, the quota is unknown.

    Attributes:
        source: where its permits come from.
        queue: where its requests wait.
    """

    def __init__(
        self, *numbers: float, floor_share: float = 0.0, plain: tuple[float, float] | None = None
    ) -> None:
        max_requests, time_window = numbers or (None, None)
        self.source = AdaptiveRate(KnownQuota(max_requests, time_window, floor_share, plain=plain))
        self.queue = Queue(self.source)
        self._turns: dict[float, Turn] = {}

    @property
    def rate(self) -> float:
        return self.source.rate

    @property
    def burst(self) -> float:
        return self.source.burst

    def take(self, now: float, chance: float = 0.5) -> Turn | None:
        """A permit that is free and that no request waits for, or None."""
        turn = Turn(chance=chance)
        if self.queue.waiting or self.queue.ask(turn, now):
            self.queue.leave(turn, now)
            return None
        return turn

    def force(self, now: float) -> Turn:
        """Take a permit, whatever the rate is."""
        self.look(now)
        self.source.credit = 2.0
        turn = self.take(now)
        assert turn is not None
        return turn

    def wait(self, now: float, turn: Turn | None = None) -> float:
        """Seconds for which a request waits; 0.0 once it goes. A new one stays in the queue."""
        wait = self.queue.ask(turn or Turn(), now)
        assert isinstance(wait, float)
        return wait

    def hold_back(self, now: float) -> Turn:
        """Let a request wait from `now` on."""
        while self.take(now):
            pass
        turn = Turn()
        assert self.queue.ask(turn, now)
        return turn

    def look(self, now: float) -> float:
        """The rate at `now`; no request comes or goes."""
        self.source.when(Turn(), 0, now)
        return self.rate

    def observe(
        self,
        status: int,
        now: float,
        sent: float,
        headers: dict[str, str] | None = None,
        *,
        chance: float = 0.0,
        turn: Turn | None = None,
    ) -> RateChange | None:
        """Tell of an answer."""
        response = httpx.Response(status, headers=headers)
        turn = turn or Turn()
        if not turn.sources:
            turn.sources = self.queue.sources
        return self.queue.learn(turn, Answer(sent, now, response, None, date, chance))

    def accept(
        self, now: float, sent: float | None = None, reading: Reading | None = None
    ) -> RateChange | None:
        """The server accepted a request sent at `sent`."""
        return self.observe(200, now, now if sent is None else sent, quota_headers(reading))

    def refuse(
        self,
        now: float,
        sent: float | None = None,
        asked: float | None = 0.0,
        reading: Reading | None = None,
        *,
        chance: float = 0.0,
        turn: Turn | None = None,
    ) -> RateChange | None:
        """The server refused a request sent at `sent`, asking for a wait of `asked` seconds; None for no word of it."""
        headers = quota_headers(reading)
        if asked is not None:
            headers["Retry-After"] = f"{asked:.9f}".rstrip("0").rstrip(".")
        sent = now if sent is None else sent
        return self.observe(429, now, sent, headers, chance=chance, turn=turn)

    def settle(self, now: float = 0.0) -> "Sender":
        """End its cold start: one refusal, which asks for no pause, after that of a burst, and a success since."""
        self.source._windowed.start._excused = True
        self.refuse(now)
        self.accept(now, sent=now + 1e-9)
        return self


def sender(**options: Any) -> Sender:
    """A sender that knows the quota."""
    return Sender(100, 60, **options)


def plain(penalty: float = 0.3, recovery: float = 0.05, **options: Any) -> Sender:
    """The same with plain AIMD."""
    return sender(plain=(penalty, recovery), **options)


def silent(rate: float, *, is_bursty: bool) -> SilentServerRate:
    """The law for servers that just refuse, at a rate that is known."""
    return SilentServerRate(KnownQuota(None, None, 0.0), Found(rate, False, 50.0, 0.0, is_bursty), 100.0)
