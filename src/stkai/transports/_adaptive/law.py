"""How the rate of the adaptive limiter moves: the tuned law, and textbook AIMD. Numbers in, numbers out.

Rates are requests per second. What each constant of the tuned law is for is in the documentation.
"""

from typing import NamedTuple, Protocol

HISTORY = 2
"""Time windows for which successes are remembered: of one alone, a small share is a handful, and mostly chance."""


class Past(NamedTuple):
    """What a sender knows of its past when it is refused.

    Attributes:
        successes: how many requests were accepted lately.
        seconds: how long `lately` is.
        held: share of the time, fading over a window, during which requests were held back.
        cold: whether this is the first refusal ever.
    """

    successes: int
    seconds: float
    held: float
    cold: bool


class Law(Protocol):
    """How a rate moves."""

    def grown(self, rate: float, quiet: float, seconds: float) -> float:
        """The rate after `seconds` more of holding back, `quiet` seconds after the last cut."""
        ...

    def cut(self, rate: float, past: Past) -> float:
        """The rate after a refusal."""
        ...


class TunedLaw(NamedTuple):
    """The law that shares a quota best by measurement; `ceiling` is the whole quota's rate, `window` in seconds."""

    ceiling: float
    window: float
    slope: float = 0.0035
    patience: float = 140.0

    def grown(self, rate: float, quiet: float, seconds: float) -> float:
        # The integral of slope * ceiling / window * (1 + (t / patience)^3) over the seconds.
        end = quiet + seconds
        cubic = (end**4 - quiet**4) / (4 * self.patience**3)
        return rate + self.slope * self.ceiling / self.window * (seconds + cubic)

    def cut(self, rate: float, past: Past) -> float:
        goodput = past.successes / max(1.0, past.seconds)
        # The larger the share, the fewer there are to take over what a cut gives away.
        eased = rate * (0.86 + 0.1 * min(1.0, goodput / self.ceiling))
        if past.held < 0.98:
            # It sends as much as it has to, not as much as it may: its goodput says nothing of its share.
            return min(rate, max(eased, min(3 * goodput, 0.4 * self.ceiling)))
        if past.seconds < self.window:
            # Too early to know the goodput. The first rate was doubled blindly, and once too often.
            return 0.5 * rate if past.cold else eased
        if goodput < 0.9 * rate:
            # What gets through of a quota that is used up is this sender's share.
            return min(eased, goodput)
        return eased


class PlainLaw(NamedTuple):
    """Textbook AIMD: lose `penalty_factor` of the rate per event, regain `recovery_factor` of the quota per window."""

    ceiling: float
    window: float
    penalty_factor: float
    recovery_factor: float

    def grown(self, rate: float, quiet: float, seconds: float) -> float:
        return rate + self.recovery_factor * self.ceiling * seconds / self.window

    def cut(self, rate: float, past: Past) -> float:
        return rate * (1 - self.penalty_factor)
