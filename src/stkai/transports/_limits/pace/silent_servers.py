"""Servers that refuse without saying how long to wait: the law of equal refusals, and what their refusals show.

Rates are in requests per second. Why each value is what it is: docs/research/adaptive.md.
"""

import math

from .pairs import PairTest
from .quota import KnownQuota

_STEP, _FIRST_STEP, _STEPS = 0.15, 0.5, 3
"""The share b. A refusal takes more at first: 0.5 / (1 + refusals / 3), until that is `_STEP`."""

_PATIENCE, _SLOW, _FAST = 0.55, 2.0, 10.0
"""The patience T in seconds per request per second, where the quota is unknown, and the rates that bound it. Below the
first, it grows by the cube root where the server accepts bursts: a slow sender can spare few requests ..."""

_USUAL, _STEEPNESS = 0.05, 3.0
"""... if more than this share is refused, it grows with this power of it: a slow quota can spare few answers ..."""

_HARDLY, _LEAST_PATIENCE = 0.02, 0.25
"""... and if less than this share is refused, as when a sender is alone, it shrinks with it, to a quarter at most."""

_MORE = 8.0  # Requests per window by which the rate grows in a window.

_TOLD, _LEAST_TOLD = 60.0, 4.0
"""With a known quota, T of a sender that has a quarter of it is the time in which it allows 60 requests, but at least 4
seconds; it is proportional to the rate."""

_EASED = 0.85
"""What a refusal takes less from a sender that has the whole quota: others have no use for it. Goes by the square."""

_STRICT_STEP, _STRICT_PATIENCE = 0.08, 40.0
"""Where the server spaces requests out: b, and T in spacings, times the share of them that a sender uses. There, the
larger sender sees fewer refusals; but it also waits longer."""

_COLLISIONS, _LAST = 0.7, 10
"""Share of the requests that is refused there at most, and the number of answers for which it holds as well."""

_LEAST_STRICT = 0.4  # The shortest patience there, in gaps.

_COLLIDES, _CALM, _CALM_PRIOR = 0.05, 0.2, 8.0
"""If less than this share is refused, as when a sender is alone, that patience shrinks with it, to a fifth at most;
and the number of answers whose weight its usual value has. Only where the quota is unknown."""

_MEMORY, _LONGEST_MEMORY, _ANSWERS, _PRIOR = 40.0, 80.0, 32.0, 24.0
"""p, the share refused, is estimated over 40 s, up to 80 if the rate allows fewer than 32 requests in them; and
the number of answers whose weight its usual value has."""

_CLEAR, _CLEAR_RATE = 8, 0.7
"""Requests accepted in a row after which the refusals so far are forgotten, once, and the lowest rate for that: they
were the end of a short window. A slow quota refuses again and again. Only where the quota is unknown."""

_OUTAGE = 8.0  # Seconds: a row of refusals so long may be the rest of a window.

_LONGEST = 75.0
"""Seconds from the end of one outage to the end of the next: a longer time is no window. Most windows are a minute."""

_ENOUGH = 5  # Requests that a sender gets in a window, at least: fewer say too little.

_SOON = 2
"""Rows of refusals that begin less than half a window after the one before, until it is clear that there is none."""

_VALID = 2.5  # Windows without a refusal after which there seems to be none.

_WAITED, _MISSED, _SURE = 16, 6, 30
"""Requests that went through after a refusal, once another one had been answered, that show a limit of requests in
flight. One that went through earlier takes back six. More than 30 are not counted."""

_SEVERAL, _GAIN = 2, 0.2
"""Requests that must be in flight at a refusal for that, and the weight of each new count of them."""


class SilentWindow:
    """Finds the window of a server that refuses everything until it is over, and never says when that is.

    What a sender got from the end of one outage to the end of the next is its share of a window, whatever it had sent.
    """

    def __init__(self, since: float, accepted: float) -> None:
        self._since, self._accepted, self._rows, self._soon = since, accepted, 0, 0
        self.seconds = 0.0  # How long the window is; 0 while none is known.

    def average(self, now: float) -> float:
        """Requests per second that were accepted since the last outage ended."""
        return self._accepted / max(1.0, now - self._since)

    def accepted(self) -> None:
        self._accepted += 1

    def refused(self, now: float) -> None:
        """Note that a row of refusals begins."""
        self._rows += 1
        self._soon = self._soon + 1 if now - self._since < self.seconds / 2 else 0
        if self._soon >= _SOON:
            self.seconds = 0.0

    def forget_if_old(self, now: float) -> None:
        """Forget a window that has refused nothing for long."""
        if now - self._since > _VALID * self.seconds:
            self.seconds = 0.0

    def accepts_again(self, now: float, row_began: float) -> float:
        """Note the end of a row of refusals that was the end of a window, or may have been.

        Returns the sender's share of a window in requests per second; 0 if there is no window.
        """
        seconds, share = now - self._since, 0.0
        is_window = self._rows == 1 and self._accepted >= _ENOUGH and seconds <= _LONGEST
        if is_window and (self.seconds or now - row_began > _OUTAGE):
            share, self.seconds = self._accepted / seconds, seconds
        self._since, self._accepted, self._rows = now, 0.0, 0
        return share


class InFlightLimit:
    """Finds out whether a server limits what is in flight, and how much of that this sender has when it is refused.

    Such a server accepts a request again as soon as one has been answered, and not before. A bucket accepts at any
    instant, so that sooner or later a request goes through between two answers. What was sent before is not counted.
    """

    def __init__(self, now: float) -> None:
        self._since, self._now = now, 0
        self._places = 0.0
        self._refused_at = self._retried_at = math.inf
        self._waited = False
        self._score = 0

    @property
    def places(self) -> int:
        """Requests in flight of this sender that the server allows; 0 if it does not limit them, as far as is known."""
        return round(self._places) if self._score >= _WAITED else 0

    def sent(self, now: float, answered_at: float) -> None:
        """Note that a request goes; the last answer of success came at `answered_at`."""
        self._now += 1
        if self._refused_at < now:
            self._retried_at, self._waited = now, answered_at >= self._refused_at
            self._refused_at = math.inf

    def ended(self, sent: float = math.inf) -> None:
        """Note that a request sent at `sent` was given up, or that its answer says nothing."""
        if sent >= self._since:
            self._now = max(0, self._now - 1)

    def accepted(self, sent: float) -> None:
        self.ended(sent)
        if sent == self._retried_at:
            self._retried_at = math.inf
            step = 1 if self._waited else -_MISSED
            self._score = max(0, min(_SURE, self._score + step))

    def refused(self, now: float, sent: float) -> None:
        """Note a refusal, with the requests that are in flight besides."""
        self.ended(sent)
        self._retried_at = math.inf
        if self._now < _SEVERAL:
            self._refused_at = math.inf
            return
        self._places += (self._now - self._places) * (_GAIN if self._places else 1.0)
        self._refused_at = now


class EqualRefusals:
    """The law of equal refusals: how the rate of one sender moves, by the share of its requests that is refused.

    The rate grows by a share b per patience T, and a refusal cuts it by b. T is proportional to the rate: all senders
    grow by the same amount, and are cut by the same share, which makes them equal (Chiu and Jain, 1989).
    """

    def __init__(self, quota: KnownQuota, test: PairTest, window: SilentWindow) -> None:
        self._quota, self._test, self._window = quota, test, window
        self._cuts = 0
        self._answers = self._refused = 0.0
        self._refused_lately = 0.5
        self.row = 0  # Requests accepted since the last refusal, even of one of a pair.
        self._has_cleared = quota.is_given

    def note(self, rate: float, *, refused: bool) -> None:
        self.row = 0 if refused else self.row + 1
        if self.row >= _CLEAR and rate >= _CLEAR_RATE and not (self._has_cleared or self._test.is_strict):
            self._has_cleared = True
            self.forget()
        self._answers += 1
        self._refused += refused
        self._refused_lately += (refused - self._refused_lately) / _LAST

    def fade(self, rate: float, seconds: float) -> None:
        fading = math.exp(-seconds / min(_LONGEST_MEMORY, max(_MEMORY, _ANSWERS / rate)))
        self._answers, self._refused = self._answers * fading, self._refused * fading

    @property
    def refuses_most(self) -> bool:
        """Whether more is refused than collisions of several senders explain."""
        return self._refused > _COLLISIONS * self._answers

    def forget(self) -> None:
        self._answers = self._refused = 0.0

    def grown(self, rate: float, seconds: float) -> float:
        """The rate after `seconds` in which requests waited."""
        is_strict = self._test.is_strict
        if is_strict and (self.refuses_most or self._refused_lately > _COLLISIONS):
            return rate  # It may be an emptied bucket.
        step = _STRICT_STEP if is_strict else _STEP
        # Patience may be nanoseconds, with a quota of 1e9 per second. The ceiling bounds the rate in any case.
        return rate * math.exp(min(50.0, step / self.patience(rate) * seconds))

    def cut(self, rate: float) -> float:
        if self._test.is_strict:
            return rate * (1 - _STRICT_STEP)
        share = rate / self._quota.ceiling
        return rate * (1 - max(_STEP, _FIRST_STEP / (1 + self._cuts / _STEPS)) * (1 - _EASED * share * share))

    def count_cut(self) -> None:
        """Count a cut, by this law or another: the steps become smaller."""
        self._cuts += 1

    def patience(self, rate: float) -> float:
        """Seconds between two refusals of one sender in balance."""
        refused = (self._refused + _USUAL * _PRIOR) / (self._answers + _PRIOR)
        ceiling = self._quota.ceiling
        if self._test.is_strict:
            spacing, calm = 1 / ceiling, 1.0
            if ceiling == math.inf:
                spacing = self._test.spacing
                collides = (self._refused + _COLLIDES * _CALM_PRIOR) / (self._answers + _CALM_PRIOR)
                calm = max(_CALM, min(1.0, collides / _COLLIDES))
            return max(_LEAST_STRICT / rate, calm * _STRICT_PATIENCE * spacing * rate * spacing)
        alone = max(_LEAST_PATIENCE, min(1.0, refused / _HARDLY))
        if ceiling < math.inf:
            return alone * max(_LEAST_TOLD, _TOLD / ceiling) * 4 * rate / ceiling
        slowest = _SLOW * math.cbrt(_SLOW / rate) if self._test.is_bursty else _SLOW
        patience = _PATIENCE * min(_FAST, max(slowest, rate)) * alone
        if refused > _USUAL:
            patience *= math.pow(refused / _USUAL, _STEEPNESS)
        window = self._window.seconds
        return max(patience, _STEP * window * max(1.0, rate * window) / _MORE)
