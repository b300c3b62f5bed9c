"""Estimates how fast a server allows requests, from how soon after a refusal it accepts one again.

A sender that gets little cannot tell from its refusals alone whether the quota is slow, or others use it up. But a
bucket without room for a request has room again after 1 / C seconds, whoever asks. docs/research/adaptive.md explains
the values.
"""

import math
from typing import Final

# The probability that a server which allows C requests per second accepts the next one some seconds after a refusal is
# _AT_ONCE + _LATER * (1 - exp(-_STEEPNESS * C * seconds)), as counted in simulation with three and four senders.
_AT_ONCE: Final = 0.03
_LATER: Final = 0.84
_STEEPNESS: Final = 5.0

_RATES: Final = tuple(2.0 ** (power / 2) for power in range(-6, 17))  # The values of C that are considered.
_LOGARITHMS: Final = tuple(map(math.log, _RATES))

_MEMORY: Final = 0.92  # The weight of an observation, relative to that of the next one.
_ENOUGH: Final = 4  # Observations before the estimate counts.

_MAX_RETRIES: Final = 100  # Retries whose answers are awaited; some never get one that counts.

_MOST_TELLING: Final = 0.25  # C * seconds at which a retry shows most, on average.
_MIN_WAIT: Final = 0.005  # Seconds.


class Refill:
    """The estimate of one sender."""

    def __init__(self) -> None:
        self._count, self._likelihoods = 0, [0.0] * len(_RATES)  # Logarithms.
        self._estimate = self._mean()
        self._sent_at, self._refused_at = -math.inf, math.inf
        self._retries: dict[float, float] = {}  # When each was sent, and how long after the refusal.

    @property
    def rate(self) -> float:
        """Requests per second; infinite until there are enough observations."""
        return self._estimate if self._count >= _ENOUGH else math.inf

    def retry_after(self, chance: float) -> float:
        """Seconds after a refused request at which the next one shows most; `chance`, from 0 to 1, is random."""
        return max(_MIN_WAIT, _MOST_TELLING * (0.5 + chance) / self._estimate)

    def sent(self, now: float) -> None:
        """Record that a request is sent. It is a retry if the last one was refused before."""
        if self._sent_at == self._refused_at:
            self._retries[now] = max(0.0, now - self._sent_at)
            if len(self._retries) > _MAX_RETRIES:
                del self._retries[next(iter(self._retries))]
        self._sent_at = now

    def answered(self, sent: float, *, accepted: bool, in_row: bool = False) -> None:
        """Record an answer to a request sent at `sent`.

        After a refusal `in_row` with others, a retry shows little: the server may be overloaded, or a window used up.
        """
        if (distance := self._retries.pop(sent, None)) is not None:
            self._observe(distance, accepted)
        if not (accepted or in_row):
            self._refused_at = sent

    def _observe(self, seconds: float, accepted: bool) -> None:
        self._count += 1
        for place, rate in enumerate(_RATES):
            chance = _AT_ONCE + _LATER * (1 - math.exp(-_STEEPNESS * rate * seconds))
            likelihood = math.log(chance if accepted else 1 - chance)
            self._likelihoods[place] = _MEMORY * self._likelihoods[place] + likelihood
        self._estimate = self._mean()

    def _mean(self) -> float:
        """The geometric mean of the values of C, weighted by their likelihoods."""
        most = max(self._likelihoods)
        weights = [math.exp(each - most) for each in self._likelihoods]
        mean = sum(weight * each for weight, each in zip(weights, _LOGARITHMS, strict=True)) / sum(weights)
        return math.exp(mean)
