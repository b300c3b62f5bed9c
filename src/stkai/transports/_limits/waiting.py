"""The wait for a permit: asks the limiter, sleeps, gives up what takes too long, and records and reports it."""

import logging
import math
from typing import Any, Final

from ..._clock import Clock
from ..._errors import ConfigurationError, TokenAcquisitionTimeoutError
from ..._log import LONG_WAIT
from ...events import Rejected, Waited
from .._call import Attempt, SignatureExpired
from .._operations import Operation, Sleep, Steps
from .._options import UNSET
from .limiter import Limiter, Plan, Turn
from .queue import Queue
from .sources.source import TICK, Source

_REAL: Final = (int, float)

_LONGEST: Final = 3600.0
"""Seconds; a longer wait is slept in pieces: every system limits the length of a sleep."""


class TooLongError(Exception):
    """The turn has waited for `waited` seconds, would wait for `wait` more, and has `left` until its deadline."""

    def __init__(self, wait: float, waited: float, left: float) -> None:
        super().__init__(wait)
        self.wait, self.waited, self.left = wait, waited, left


class Waiting:
    """One request's wait for its permit: for at most `limit` seconds, and until the instant `deadline`."""

    def __init__(
        self, limiter: Limiter | Queue, turn: Turn, clock: Clock, limit: float, deadline: float
    ) -> None:
        self.limiter, self.turn, self.clock = limiter, turn, clock
        self.limit, self.deadline = limit, deadline
        # When it began and ended.
        self.start = self.now = 0.0
        # Seconds for which each source held it up, if that is to be reported.
        self.held: dict[Source | None, float] | None = None

    def steps(self, wait: float | Operation, start: float) -> Steps[float]:
        """Wait, as the limiter said at `start`; returns when the permit was taken. A failure leaves the queue."""
        self.start = now = start
        limiter, turn, clock = self.limiter, self.turn, self.clock
        try:
            while wait != 0.0:
                if isinstance(wait, _REAL) and wait > 0:
                    left = min(self.deadline - now, self.limit - (now - start))
                    if wait > left + TICK and not (turn.is_guess and left > TICK):
                        raise TooLongError(wait, now - start, self.deadline - now)
                    yield Sleep(min(wait, turn.nap, left, _LONGEST))
                elif isinstance(wait, Operation):
                    yield wait
                else:
                    raise _no_answer(limiter, wait)
                before, now = now, clock.monotonic()
                if self.held is not None:
                    self.held[turn.held_by] = self.held.get(turn.held_by, 0.0) + now - before
                wait = limiter.ask(turn, now)
        except BaseException:
            self.now = clock.monotonic()
            limiter.leave(turn, self.now)
            raise
        return now


class CallWaiting(Waiting):
    """The wait of one attempt; the attempts of a call share its allowance."""

    def __init__(self, layer: Any, limiter: Any, turn: Turn, plan: Plan, attempt: Attempt) -> None:
        call = attempt.call
        allowed, deadline = call.options.max_wait_time, call.deadline
        if allowed is UNSET:
            allowed = plan.max_wait_time
        limit = math.inf if allowed is None else attempt.allowance(allowed)
        # Not by `super()`, which Python looks up anew for every permit.
        Waiting.__init__(
            self, limiter, turn, layer.context.clock, limit, math.inf if deadline is None else deadline
        )
        self._layer, self._attempt, self._allowed = layer, attempt, allowed
        if plan.sees_all or turn.guests or limiter.has_remote:
            # Thousands of others wait without it.
            turn.call = attempt.info
        if attempt.is_observed and len({source.limit for source in turn.sources}) > 1:
            self.held = {}

    def failed(self, error: BaseException) -> None:
        """Record the wait; if it would take too long, report that, and raise the error for the caller."""
        attempt, record = self._attempt, self._attempt.record
        if not isinstance(error, TooLongError):
            record.queued += self.now - self.start
            return
        record.queued += error.waited
        if error.left < self.limit - error.waited:
            self._refuse(error.wait, error.left)
            raise attempt.no_time_for(error.wait, error.left) from None
        most = self._allowed or 0.0
        waited = most - self.limit + error.waited  # Also at the redirects before this one.
        self._refuse(waited + error.wait, most)
        raise TokenAcquisitionTimeoutError(waited, most, required=waited + error.wait) from None

    def _refuse(self, wait: float, limit: float) -> None:
        layer = self._layer
        layer.context.emit(Rejected(call=self._attempt.info, layer=layer.name, wait=wait, limit=limit))

    def ended(self, sent: float) -> None:
        """Record and report the wait; the permit, taken at `sent`, is given back if the token has expired meanwhile."""
        attempt, waited = self._attempt, sent - self.start
        attempt.record.queued += waited
        if waited and attempt.is_observed:
            self._report(waited)
        if attempt.is_signed is not None and not attempt.is_signed():
            # Otherwise all requests that wait for a new token would leave together when it comes.
            self.limiter.leave(self.turn, sent)
            attempt.place = (self.limiter, self.turn)
            raise SignatureExpired

    def _report(self, waited: float) -> None:
        layer, held = self._layer, self.held
        if layer.context.hears(logging.INFO if waited > LONG_WAIT else logging.DEBUG):
            # The limit that held it up for longest.
            source: Any = None if held is None else max(held, key=held.__getitem__, default=None)
            limit = "" if source is None else str(source.limit)
            layer.context.emit(Waited(call=self._attempt.info, layer=layer.name, seconds=waited, limit=limit))


def _no_answer(limiter: object, wait: object) -> ConfigurationError:
    """The error for a faulty limiter of the user's own; one that returns nothing would let everything pass."""
    return ConfigurationError(
        f"{type(limiter).__name__}.ask must return 0.0 to let a request go, the seconds that it must wait, or an"
        f" operation; not {wait!r}"
    )
