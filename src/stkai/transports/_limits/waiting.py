"""The wait for a permit: asks the limiter, sleeps, gives up what takes too long, and records and reports it."""

import logging
import math
from typing import Any, Final

from ..._errors import ConfigurationError, DeadlineExceededError, TokenAcquisitionTimeoutError, digits
from ..._log import LONG_WAIT
from ...events import Rejected, Waited
from .._call import Attempt, SignatureExpired
from .._context import Context
from .._operations import Operation, Sleep, Steps
from .._options import UNSET
from .limiter import Plan, Turn
from .sources.source import TICK, Source

_REAL: Final = (int, float)

_LONGEST: Final = 3600.0
"""Seconds; a longer wait is slept in pieces: every system limits the length of a sleep."""


class Waiting:
    """The wait of one attempt for its permit; the attempts of a call share its allowance, in seconds."""

    def __init__(
        self, context: Context, layer: str, limiter: Any, turn: Turn, plan: Plan, attempt: Attempt
    ) -> None:
        call = attempt.call
        allowed, deadline = call.options.max_wait_time, call.deadline
        if allowed is UNSET:
            allowed = plan.max_wait_time
        self._context, self._layer, self._limiter, self._turn = context, layer, limiter, turn
        self._attempt = attempt
        self._allowed: float | None = allowed
        self._left = math.inf if allowed is None else attempt.allowance(allowed)
        self._deadline = math.inf if deadline is None else deadline
        # Seconds for which each source held it up, if that is to be reported.
        self._held: dict[Source | None, float] | None = None
        if plan.sees_all or turn.guests or limiter.has_remote:
            # Thousands of others wait without it.
            turn.call = attempt.info
        if attempt.is_observed and len({source.limit for source in turn.sources}) > 1:
            self._held = {}

    def steps(self, wait: float | Operation, start: float) -> Steps[float]:
        """Wait, as the limiter said at `start`; returns when the permit was taken. A failure leaves the queue.

        Raises:
            TokenAcquisitionTimeoutError, DeadlineExceededError: it would take too long.
            SignatureExpired: the token has expired meanwhile.
        """
        now, deadline, last = start, self._deadline, self._left + start
        limiter, turn, clock, held = self._limiter, self._turn, self._context.clock, self._held
        try:
            while wait != 0.0:
                if isinstance(wait, _REAL) and wait > 0:
                    left = min(deadline, last) - now
                    if wait > left + TICK and not (turn.is_guess and left > TICK):
                        break
                    yield Sleep(min(wait, turn.nap, left, _LONGEST))
                elif isinstance(wait, Operation):
                    yield wait
                else:
                    raise _no_answer(limiter, wait)
                before, now = now, clock.monotonic()
                if held is not None:
                    held[turn.held_by] = held.get(turn.held_by, 0.0) + now - before
                wait = limiter.ask(turn, now)
        except BaseException:
            now = clock.monotonic()
            limiter.leave(turn, now)
            self._attempt.record.queued += now - start
            raise
        waited = now - start
        self._attempt.record.queued += waited
        if isinstance(wait, _REAL) and wait > 0:
            limiter.leave(turn, now)
            raise self._refused(wait, waited, deadline - now)
        self._ended(now, waited)
        return now

    def _refused(self, wait: float, waited: float, left: float) -> Exception:
        """Report that the wait would take too long; returns the error for the caller."""
        if left < self._left - waited:
            self._refuse(wait, left)
            return DeadlineExceededError(
                f"a permit takes {digits(wait)} s, and the call's deadline leaves {digits(max(0.0, left))} s:"
                " nothing was sent"
            )
        most = self._allowed or 0.0
        waited = most - self._left + waited  # Also at the redirects before this one.
        self._refuse(waited + wait, most)
        return TokenAcquisitionTimeoutError(waited, most, required=waited + wait)

    def _refuse(self, wait: float, limit: float) -> None:
        self._context.emit(Rejected(call=self._attempt.info, layer=self._layer, wait=wait, limit=limit))

    def _ended(self, sent: float, waited: float) -> None:
        """Report the wait; the permit, taken at `sent`, is given back if the token has expired meanwhile."""
        attempt = self._attempt
        if waited and attempt.is_observed:
            self._report(waited)
        if attempt.is_signed is not None and not attempt.is_signed():
            # Otherwise all requests that wait for a new token would leave together when it comes.
            self._limiter.leave(self._turn, sent)
            attempt.place = (self._limiter, self._turn)
            raise SignatureExpired

    def _report(self, waited: float) -> None:
        context, held = self._context, self._held
        if context.hears(logging.INFO if waited > LONG_WAIT else logging.DEBUG):
            # The limit that held it up for longest.
            source: Any = None if held is None else max(held, key=held.__getitem__, default=None)
            limit = "" if source is None else str(source.limit)
            context.emit(Waited(call=self._attempt.info, layer=self._layer, seconds=waited, limit=limit))


def _no_answer(limiter: object, wait: object) -> ConfigurationError:
    """The error for a faulty limiter of the user's own; one that returns nothing would let everything pass."""
    return ConfigurationError(
        f"{type(limiter).__name__}.ask must return 0.0 to let a request go, the seconds that it must wait, or an"
        f" operation; not {wait!r}"
    )
