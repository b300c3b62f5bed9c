"""What the answers of a silent server show: how fast it is, whether it counts in windows, which requests it has
accepted, and whether it limits those in flight. docs/research/adaptive.md explains the values.
"""

import math
from collections.abc import Iterator
from typing import Final
from weakref import ref

from ..limiter import Turn

# The probability that a server which allows C requests per second accepts the next one some seconds after a refusal is
# _AT_ONCE + _LATER * (1 - exp(-_STEEPNESS * C * seconds)), as counted in simulation with three and four senders.
_AT_ONCE: Final = 0.03
_LATER: Final = 0.84
_STEEPNESS: Final = 5.0

_RATES: Final = tuple(2.0 ** (power / 2) for power in range(-6, 17))  # The values of C that are considered.
_LOGARITHMS: Final = tuple(map(math.log, _RATES))

_MEMORY: Final = 0.92  # The weight of an observation, relative to that of the next one.
_ENOUGH: Final = 4  # Observations before the estimate counts.

_MOST_TELLING: Final = 0.25  # C * seconds at which a retry shows most, on average.
_MIN_WAIT: Final = 0.005  # Seconds.

# Some seconds after a refusal, a bucket that allows C requests per second has room for n = C * seconds of them. When it
# has accepted one and is tested with further ones at once, it accepts test k, if all before it, with about n / (n + k).
_LEAST_ALLOWED: Final = 1.0  # The least C: windows of some seconds make the estimate much too small.
_UNDERESTIMATE: Final = 2.0  # Twice the estimate of a bucket's C is safe.
_MAX_ALLOWED: Final = 4.0  # With a larger C, the rate grows fast anyway, and a test is not worth a refusal.

# The evidence for a window is the logarithm of how much less likely the outcomes of the tests are with a bucket.
_WINDOW_EVIDENCE: Final = 4.0
_EVIDENCE_PER_ROW: Final = 1.5  # At most, from one row of refusals: all senders may have been idle before.
_TESTED_AFTER: Final = 20.0  # Seconds. In the cold start, all senders are idle for long.
_FEWER_TESTS: Final = 4  # Factor by which tests become rarer with each that is refused.
_MAX_ROWS: Final = 64  # Rows of refusals per test, at most.

# A request has been accepted if it is in flight for longer than this multiple of what refusals take, plus some seconds.
_LATENCIES: Final = 5.0
_MIN_LATENCY: Final = 0.05  # Seconds.
_REFUSALS_FADE: Final = 0.9  # What refusals take is their maximum, which fades by this factor with each.

# Evidence of a limit on requests in flight: one for each retry (the first request sent after a refusal) that succeeds
# after another success has arrived, less _CONTRARY_EVIDENCE for each that succeeds sooner.
_ENOUGH_EVIDENCE: Final = 16
_SUSPICION: Final = 3  # Evidence from which on retries do not go early, since an early one shows too little.
_CONTRARY_EVIDENCE: Final = 6
_MAX_EVIDENCE: Final = 30  # More is not counted.
_MIN_IN_FLIGHT: Final = 2  # Requests in flight besides a refused one; with fewer, its retry is not evidence.
_SLOTS_WEIGHT: Final = 0.2  # Weight of the latest refusal in the average number of requests in flight.


class Refill:
    """Estimates how many requests per second a server allows, from how soon after a refusal it accepts one again.

    A sender that gets little cannot tell from its refusals alone whether the quota is slow, or others use it up. But a
    bucket without room for a request has room again after 1 / C seconds, whoever asks.
    """

    def __init__(self) -> None:
        self._count, self._likelihoods = 0, [0.0] * len(_RATES)  # Logarithms.
        self._estimate = self._mean()
        self._sent_at, self._refused_at = -math.inf, math.inf
        self._retried_at, self._distance = math.inf, 0.0

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
            self._retried_at, self._distance = now, max(0.0, now - self._sent_at)
        self._sent_at = now

    def answered(self, sent: float, *, accepted: bool, in_row: bool = False) -> None:
        """Record an answer to a request sent at `sent`.

        After a refusal `in_row` with others, a retry shows little: the server may be overloaded, or a window used up.
        """
        if sent == self._retried_at:
            self._retried_at = math.inf
            self._observe(self._distance, accepted)
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


class WindowTest:
    """Finds out whether a server counts in windows: the end of a window makes room for many requests at once.

    A bucket makes room for one request after the other. So when a row of refusals has ended, another request is sent at
    once, as a test. After each test that is accepted, the next one follows, until this row has shown enough.
    """

    def __init__(self, since: float) -> None:
        self._since = since
        self._evidence = self._from_row = 0.0
        self._rows, self._rows_per_test = 0, 1
        self._is_next, self._allowed, self._tests, self._chance = False, math.inf, 0, 1.0
        self._refused_at = -math.inf  # When the last refused request was sent.

    @property
    def is_window(self) -> bool:
        return self._evidence >= _WINDOW_EVIDENCE

    def row_ended(self, now: float, allowed: float) -> bool:
        """Record the end of a row of refusals, by a server that seems to allow `allowed` requests per second.

        Returns whether to send the next request at once, as a test.
        """
        self._rows += 1
        is_time = now - self._since > _TESTED_AFTER and self._rows >= self._rows_per_test
        self._is_next = is_time and (self.is_window or allowed <= _MAX_ALLOWED)
        if self._is_next:
            self._rows, self._tests, self._from_row = 0, 0, 0.0
            self._allowed = max(_LEAST_ALLOWED, _UNDERESTIMATE * allowed)
        return self._is_next

    def sent(self, turn: Turn, now: float) -> None:
        if self._is_next:
            self._is_next = False
            turn.note(self, True)
            self._tests += 1
            room = self._allowed * max(_MIN_WAIT, now - self._refused_at)
            self._chance = room / (room + self._tests)

    def accepted(self, turn: Turn) -> bool:
        """Record a success. Returns whether to send the next request at once, as another test."""
        if turn.noted(self) is None:
            return False
        was_window = self.is_window
        evidence = min(-math.log(self._chance), _EVIDENCE_PER_ROW - self._from_row)
        self._evidence, self._from_row = self._evidence + evidence, self._from_row + evidence
        if self.is_window:
            self._rows_per_test = 1
        self._is_next = not was_window and self._from_row < _EVIDENCE_PER_ROW
        return self._is_next

    def refused(self, turn: Turn, sent: float) -> bool:
        """Record the refusal of a request sent at `sent`. Returns whether it was a test, which says no more."""
        if turn.noted(self) is None:
            self._refused_at, self._is_next = sent, False  # The next request is a retry.
            return False
        self._evidence, self._rows_per_test = 0.0, min(_MAX_ROWS, _FEWER_TESTS * self._rows_per_test)
        return True


class Unanswered:
    """The requests in flight, to find those that the server must have accepted.

    Refusals come at once, while an answer may take seconds. So a request that has been in flight for much longer than
    refusals take has been accepted, if anything has been answered since it was sent: the server may have failed.
    """

    def __init__(self) -> None:
        # In the order in which they were sent; weak, since a slot in flight is free once its turn is dropped.
        self._sent: dict[ref[Turn], float] = {}
        self._refusals_take, self._answered_at = math.inf, -math.inf

    def sent(self, turn: Turn, now: float) -> None:
        self._sent[ref(turn)] = now

    def ended(self, turn: Turn) -> None:
        """Record that the request was given up, or that its answer says nothing."""
        self._sent.pop(ref(turn), None)

    def answered(self, turn: Turn, now: float) -> bool:
        """Record that an answer arrives. Returns False if the request has already been counted as accepted."""
        self.ended(turn)
        self._answered_at = now
        return turn.noted(self) is None

    def refused(self, turn: Turn, now: float, sent: float) -> None:
        """Record that a request sent at `sent` is refused."""
        self.answered(turn, now)
        faded = 0.0 if self._refusals_take == math.inf else _REFUSALS_FADE * self._refusals_take
        self._refusals_take = max(now - sent, faded)

    def accepted(self, now: float) -> Iterator[tuple[Turn, float]]:
        """The requests that the server must have accepted, each once, and when they were sent."""
        longest = _LATENCIES * self._refusals_take + _MIN_LATENCY
        while self._sent:
            known, sent = next(iter(self._sent.items()))
            turn = known()
            if turn is not None and (now - sent <= longest or sent > self._answered_at):
                return
            del self._sent[known]
            if turn is not None:
                turn.note(self, True)
                yield turn, sent


class InFlightLimit:
    """Finds out whether a server limits the requests in flight, and how many slots this sender then has.

    Such a server accepts another request only once it has answered one. A bucket is refilled all the time, so sooner or
    later, it accepts a request between two answers. Requests sent before the start do not count.
    """

    def __init__(self, now: float) -> None:
        self._since, self._in_flight = now, 0
        self._slots = 0.0
        self._refused_at = self._retried_at = math.inf
        self._answered_at = now  # When the last success arrived.
        self._waited = False  # Whether one arrived between the refusal and the retry.
        self._evidence = 0

    @property
    def slots(self) -> int:
        """How many of this sender's requests may be in flight; 0 if no limit was found."""
        return round(self._slots) if self._evidence >= _ENOUGH_EVIDENCE else 0

    @property
    def finding(self) -> str:
        """The limit, in words; empty if none was found."""
        return f"in flight: {self.slots}" if self.slots else ""

    @property
    def is_suspected(self) -> bool:
        """Whether some retries have been evidence of a limit, and none since then contrary."""
        return self._evidence >= _SUSPICION

    def sent(self, now: float) -> None:
        self._in_flight += 1
        if self._refused_at < now:
            self._retried_at, self._waited = now, self._answered_at >= self._refused_at
            self._refused_at = math.inf

    def ended(self, sent: float = math.inf) -> None:
        """Record that a request sent at `sent` was given up, or that its answer says nothing."""
        if sent >= self._since:
            self._in_flight = max(0, self._in_flight - 1)

    def accepted(self, now: float, sent: float) -> None:
        """Record that the answer to a request sent at `sent` arrives."""
        self.ended(sent)
        self._answered_at = now
        if sent == self._retried_at:
            self._retried_at = math.inf
            step = 1 if self._waited else -_CONTRARY_EVIDENCE
            self._evidence = max(0, min(_MAX_EVIDENCE, self._evidence + step))

    def refused(self, now: float, sent: float) -> None:
        """Record a refusal, and the number of other requests in flight."""
        self.ended(sent)
        self._retried_at = math.inf
        if self._in_flight < _MIN_IN_FLIGHT:  # It can hardly be due to a limit.
            self._refused_at = math.inf
            return
        self._slots += (self._in_flight - self._slots) * (_SLOTS_WEIGHT if self._slots else 1.0)
        self._refused_at = now
