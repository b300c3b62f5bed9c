"""The wait for a permit, with its limits, its record and its events."""

import logging
import math
from collections.abc import Callable
from typing import Any, Final

from ..._checks import REAL
from ..._clock import is_system_clock
from ..._errors import ConfigurationError, DeadlineExceededError, TokenAcquisitionTimeoutError, digits
from ..._log import LONG_WAIT
from ...events import Rejected, Waited
from .._call import Attempt, SignatureExpired
from .._context import Context
from .._driver import NAP
from .._operations import Operation, Sleep, Steps
from .._options import UNSET
from .limiter import Plan, Turn
from .sources import TICK, Source

# Seconds; longer waits are split, because every system limits the length of a sleep.
_MAX_SLEEP: Final = 3600.0
_MAX_IDLE: Final = 0.1  # Seconds for which a request that has a connection may wait for a permit.
_RESERVE_LEAD: Final = 0.05  # Seconds before its permit is due at which it reserves another connection.

_Held = dict[Source | None, float]  # Seconds for which each source held a turn up.


def wait_for_permit(  # noqa: C901, PLR0912 - one loop, which reads in order
    context: Context,
    layer: str,
    limiter: Any,
    turn: Turn,
    plan: Plan,
    attempt: Attempt,
    wait: float | Operation,
    start: float,
    *,
    reserved: list[Any] | None = None,  # The request's connection, which others may use if it waits long.
    again: Callable[[], Steps[None]] | None = None,  # Reserves another connection.
) -> Steps[float]:
    """Wait until the limiter admits the turn; returns when it did. `wait` is its answer at `start`.

    After an error, the caller must call `leave`. Raises SignatureExpired if the token has expired.
    """
    now, held_since, given, deadline = start, start, attempt.options.max_wait_time, attempt.deadline
    most = plan.max_wait_time if given is UNSET else given
    latest = math.inf if deadline is None else deadline
    end = latest if most is None else min(start + attempt.allowance(most), latest)
    if not plan.sources or limiter.has_remote:
        turn.call = attempt.info  # Only if needed: thousands may wait.
    held: _Held | None = {} if attempt.is_observed else None
    try:
        while wait != 0.0:
            if isinstance(wait, REAL) and wait > 0:
                left = end - now
                if wait > left + TICK and (left <= TICK or not (turn.is_guess or turn.certain <= left)):
                    raise _rejection(context, layer, attempt, most, wait, now - start, now)
                if reserved and now - held_since + wait > _MAX_IDLE:
                    reserved.pop().unused()
                if again is not None and not reserved and not turn.is_guess:
                    if wait > _RESERVE_LEAD:
                        turn.nap = min(turn.nap, wait - _RESERVE_LEAD)
                    elif wait <= turn.nap:  # Otherwise it has no permit yet, and the wait may become longer.
                        yield from again()
                        before, now = now, context.now()
                        # This was not a wait for a permit.
                        start, end, held_since = start + now - before, min(end + now - before, latest), now
                        wait = limiter.ask(turn, now)
                        continue
                yield _sleep(context, turn, wait, left)
            elif isinstance(wait, Operation):
                yield wait
            else:
                # A limiter that returns None would admit everything.
                names = [source.limit for source in turn.custom] or [type(limiter).__name__]
                raise ConfigurationError(
                    f"{' or '.join(names)}.ask must return 0.0 to let a request go, the seconds that it must wait,"
                    f" or an operation; not {wait!r}"
                )
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
        # Otherwise, all requests that wait for a new token would be sent together when it arrives.
        attempt.place = (limiter, turn)
        raise SignatureExpired
    return now


def _sleep(context: Context, turn: Turn, wait: float, left: float) -> Sleep:
    """The sleep of a turn that has to wait: not beyond its nap, nor the seconds that are left."""
    # Sleeps of other clocks are exact, and end early only if necessary.
    wakes = getattr(turn.held_by, "wakes", False)
    is_real = (wakes or wait >= NAP) and is_system_clock(context.clock)
    if is_real and wakes and turn.wake is not None and not turn.held_by.is_exact:
        # It will be woken; thousands that check their guesses leave no time for anything else.
        wait = turn.nap
    is_long = is_real and wait >= NAP
    seconds = float(min(wait + turn.slack if is_long else wait, turn.nap, left, _MAX_SLEEP))  # Not NumPy's.
    return Sleep(seconds, turn if wakes or (is_long and seconds >= NAP) else None)


def _rejection(
    context: Context, layer: str, attempt: Attempt, most: float | None, wait: float, waited: float, now: float
) -> Exception:
    """Report that the wait would be too long; returns the error to raise."""
    left, allowed = attempt.call.time_left(now), attempt.allowance(most)
    error: Exception
    if most is None or left < allowed - waited:
        limit = max(0.0, left)
        error = DeadlineExceededError(
            f"a permit takes {digits(wait)} s, and the call's deadline leaves {digits(limit)} s: nothing was sent"
        )
    else:
        waited += most - allowed  # Including earlier redirects.
        limit, wait = most, waited + wait
        error = TokenAcquisitionTimeoutError(waited, most, required=wait)
    context.emit(Rejected(call=attempt.info, layer=layer, wait=wait, limit=limit))
    return error


def _report(context: Context, layer: str, attempt: Attempt, turn: Turn, waited: float, held: _Held) -> None:
    if waited and context.observes(logging.INFO if waited > LONG_WAIT else logging.DEBUG):
        limit = ""
        if len({source.limit for source in turn.sources}) > 1:
            # The limit that held it up the longest.
            source: Any = max(held, key=held.__getitem__, default=None)
            limit = "" if source is None else str(source.limit)
        context.emit(Waited(call=attempt.info, layer=layer, seconds=waited, limit=limit))
