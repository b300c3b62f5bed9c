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


def wait_for_permit(
    context: Context,
    layer: str,
    limiter: Any,
    turn: Turn,
    plan: Plan,
    attempt: Attempt,
    wait: float | Operation,
    start: float,
) -> Steps[float]:
    """Wait, as the limiter said at `start`; returns when the permit was taken. After an error, the caller has to leave.

    The attempts of a call share its allowance, in seconds.

    Raises:
        TokenAcquisitionTimeoutError, DeadlineExceededError: it would take too long.
        SignatureExpired: the token has expired meanwhile.
    """
    now, call = start, attempt.call
    given, deadline = call.options.max_wait_time, call.deadline
    most = plan.max_wait_time if given is UNSET else given
    end = math.inf if most is None else start + attempt.allowance(most)
    if deadline is not None and deadline < end:
        end = deadline
    if plan.sees_all or turn.guests or limiter.has_remote:
        turn.call = attempt.info  # Thousands of others wait without it.
    # Seconds for which each source held it up, if that is to be reported.
    held: dict[Source | None, float] | None = {} if attempt.is_observed else None
    try:
        while wait != 0.0:
            if isinstance(wait, _REAL) and wait > 0:
                left = end - now
                if wait > left + TICK and not (turn.is_guess and left > TICK):
                    raise _refused(context, layer, attempt, most, wait, now - start, now)
                yield Sleep(min(wait, turn.nap, left, _LONGEST))
            elif isinstance(wait, Operation):
                yield wait
            else:
                raise _no_answer(limiter, wait)
            before, now = now, context.now()
            if held is not None:
                held[turn.held_by] = held.get(turn.held_by, 0.0) + now - before
            wait = limiter.ask(turn, now)
    except BaseException:
        now = context.now()
        raise
    finally:
        attempt.record.queued += now - start
    if held is not None:
        _report(context, layer, attempt, turn, now - start, held)
    if attempt.is_signed is not None and not attempt.is_signed():
        # Otherwise all requests that wait for a new token would leave together when it comes.
        attempt.place = (limiter, turn)
        raise SignatureExpired
    return now


def _refused(
    context: Context, layer: str, attempt: Attempt, most: float | None, wait: float, waited: float, now: float
) -> Exception:
    """Report that the wait would take too long; returns the error for the caller."""
    left, allowed = attempt.call.time_left(now), attempt.allowance(most)
    error: Exception
    if most is None or left < allowed - waited:
        limit = left
        error = DeadlineExceededError(
            f"a permit takes {digits(wait)} s, and the call's deadline leaves {digits(max(0.0, left))} s:"
            " nothing was sent"
        )
    else:
        waited += most - allowed  # Also at the redirects before this one.
        limit, wait = most, waited + wait
        error = TokenAcquisitionTimeoutError(waited, most, required=wait)
    context.emit(Rejected(call=attempt.info, layer=layer, wait=wait, limit=limit))
    return error


def _report(
    context: Context,
    layer: str,
    attempt: Attempt,
    turn: Turn,
    waited: float,
    held: dict[Source | None, float],
) -> None:
    if waited and context.hears(logging.INFO if waited > LONG_WAIT else logging.DEBUG):
        limit = ""
        if len({source.limit for source in turn.sources}) > 1:
            # The limit that held it up for longest.
            source: Any = max(held, key=held.__getitem__, default=None)
            limit = "" if source is None else str(source.limit)
        context.emit(Waited(call=attempt.info, layer=layer, seconds=waited, limit=limit))


def _no_answer(limiter: object, wait: object) -> ConfigurationError:
    """The error for a faulty limiter of the user's own; one that returns nothing would let everything pass."""
    return ConfigurationError(
        f"{type(limiter).__name__}.ask must return 0.0 to let a request go, the seconds that it must wait, or an"
        f" operation; not {wait!r}"
    )
