"""A call's wait for its permit: how long it may take, what the call's record says of it, and who is told."""

import logging
import math
from typing import Any, Final

from ..._errors import TokenAcquisitionTimeoutError
from ...events import Rejected, Waited
from .._call import Attempt, SignatureExpired
from .._context import Context
from .._options import UNSET
from .limiter import Turn
from .plan import Plan
from .waiting import TooLongError, Waiting

_LONG: Final = 1.0
"""Seconds; a longer wait is worth a line in the log."""


class CallWaiting(Waiting):
    """The wait of one attempt; the attempts of a call share its allowance.

    Args:
        layer: the name of the layer.
        context: the stack's clock, random numbers and listener.
        limiter: the one to ask.
        turn: the request's turn.
        plan: what the request needs.
        attempt: the request's attempt.
    """

    def __init__(
        self, layer: str, context: Context, limiter: Any, turn: Turn, plan: Plan, attempt: Attempt
    ) -> None:
        allowed, deadline = attempt.call.options.max_wait_time, attempt.call.deadline
        if allowed is UNSET:
            allowed = plan.max_wait_time
        limit = attempt.allowance(allowed)
        super().__init__(limiter, turn, context.clock, limit, math.inf if deadline is None else deadline)
        self._layer, self._context, self._attempt, self._allowed = layer, context, attempt, allowed
        may_act = getattr(limiter, "is_own", True) or any(source.is_remote for source in turn.sources)
        if may_act or turn.guests:  # Thousands of others wait without it.
            turn.call = attempt.info

    def failed(self, error: BaseException) -> None:
        """Record the wait, and report a refusal.

        Raises:
            TokenAcquisitionTimeoutError: it would take longer than it may.
            DeadlineExceededError: it would end after the call's deadline.
        """
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
        self._context.emit(Rejected(call=self._attempt.info, layer=self._layer, wait=wait, limit=limit))

    def ended(self, sent: float) -> None:
        """Record the wait, and report it; the permit was taken at `sent`.

        Raises:
            SignatureExpired: the token has expired meanwhile; the permit is given back.
        """
        attempt, context, waited = self._attempt, self._context, sent - self.start
        attempt.record.queued += waited
        if waited and context.hears(logging.INFO if waited > _LONG else logging.DEBUG):
            limit = self.limit_in_words
            context.emit(Waited(call=attempt.info, layer=self._layer, seconds=waited, limit=limit))
        if attempt.is_signed is not None and not attempt.is_signed():
            # Otherwise all requests that wait for a new token would leave together when it comes.
            self.limiter.leave(self.turn, sent)
            attempt.ticket = (self.limiter, self.turn)
            raise SignatureExpired
