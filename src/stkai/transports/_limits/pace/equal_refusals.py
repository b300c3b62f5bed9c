"""The law of equal refusals, for servers that refuse without saying how long to wait. Numbers in, numbers out.

The rate grows by a share b per patience T, and a refusal cuts it by b. In balance, each sender is refused once per T.
Senders that share a bucket tend to be refused in turn, however much each sends, so T is proportional to the sender's
own rate: all rates grow by the same amount, and are cut by the same share, which makes them equal (Chiu and Jain,
1989). Rates are in requests per second. Why each value is what it is: docs/research/adaptive.md.
"""

import math

from .pairs import PairTest
from .quota import KnownQuota
from .silent_window import SilentWindow

_STEP, _FIRST_STEP, _STEPS = 0.15, 0.5, 3
"""The share b. A refusal takes more at first: 0.5 / (1 + refusals / 3), until that is `_STEP`."""

_PATIENCE, _SLOW, _FAST = 0.55, 2.0, 10.0
"""The patience T in seconds per request per second, where the quota is unknown, and the rates that bound it ..."""

_USUAL, _STEEPNESS = 0.05, 3.0
"""... if more than this share is refused, it grows with this power of it: a slow quota can spare few answers ..."""

_HARDLY, _LEAST_PATIENCE = 0.02, 0.25
"""... and if less than this share is refused, as when a sender is alone, it shrinks with it, to a quarter at most."""

_MORE = 8.0
"""Requests per window by which the rate grows in a window."""

_TOLD = 60.0
"""With a known quota, T of a sender that has a quarter of it is the time in which it allows so many requests ..."""

_LEAST_TOLD = 4.0
"""... but at least this, in seconds; it is proportional to the rate."""

_EASED = 0.85
"""What a refusal takes less from a sender that has the whole quota: others have no use for it. Goes by the square."""

_STRICT_STEP, _STRICT_PATIENCE = 0.08, 40.0
"""Where the server spaces requests out: b, and T in spacings, times the share of them that a sender uses. There, the
larger sender sees fewer refusals; but it also waits longer."""

_FASTEST = 1.1
"""Requests per spacing there at most, unless the quota is known."""

_COLLISIONS = 0.7
"""Share of the requests that is refused there at most."""

_LEAST_STRICT = 0.4
"""The shortest patience there, in gaps."""

_COLLIDES, _CALM, _CALM_PRIOR = 0.05, 0.2, 8.0
"""If less than this share is refused, as when a sender is alone, that patience shrinks with it, to a fifth at most;
and the number of answers whose weight its usual value has. Only where the quota is unknown."""

_MEMORY, _LONGEST_MEMORY, _ANSWERS, _PRIOR = 40.0, 80.0, 32.0, 24.0
"""p, the share refused, is estimated over 40 s, up to 80 if the rate allows fewer than 32 requests in them; and
the number of answers whose weight its usual value has."""


class EqualRefusals:
    """How the rate of one sender moves, by the share of its requests that is refused.

    Args:
        quota: the ceiling, if it is known.
        test: knows whether the server spaces requests out.
        window: knows whether it has a window.
    """

    def __init__(self, quota: KnownQuota, test: PairTest, window: SilentWindow) -> None:
        self._quota, self._test, self._window = quota, test, window
        self._cuts = 0
        self._answers = self._refused = 0.0

    def note(self, *, refused: bool) -> None:
        """Note an answer."""
        self._answers += 1
        self._refused += refused

    def fade(self, rate: float, seconds: float) -> None:
        """Let what was noted fade."""
        fading = math.exp(-seconds / min(_LONGEST_MEMORY, max(_MEMORY, _ANSWERS / rate)))
        self._answers, self._refused = self._answers * fading, self._refused * fading

    @property
    def refuses_most(self) -> bool:
        """Whether more is refused than collisions of several senders explain."""
        return self._refused > _COLLISIONS * self._answers

    def forget(self) -> None:
        """Forget all answers."""
        self._answers = self._refused = 0.0

    def grown(self, rate: float, seconds: float) -> float:
        """The rate after `seconds` in which requests waited."""
        test = self._test
        step = _STRICT_STEP if test.is_strict else _STEP
        grown = rate * math.exp(step / self.patience(rate) * seconds)
        finds = test.is_strict and self._quota.ceiling == math.inf and test.is_clear
        return min(grown, _FASTEST / test.spacing) if finds else grown

    def cut(self, rate: float) -> float:
        """The rate after a refusal."""
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
        patience = _PATIENCE * min(_FAST, max(_SLOW, rate)) * alone
        if refused > _USUAL:
            patience *= math.pow(refused / _USUAL, _STEEPNESS)
        window = self._window.seconds
        return max(patience, _STEP * window * max(1.0, rate * window) / _MORE)
