"""How much of the traffic may be retries: `RetryBudget`, as in Finagle, tower and the AWS SDKs.

While a server is down, a policy of three retries sends it four times the load that it already could not handle. With
a budget, retries are at most a share of the calls; first attempts are never held back.
"""

import math
import threading
from typing import Any

from ..._checks import AT_LEAST_ZERO, Numbers, check_number, even_half_made
from ..._process import after_fork

_MEMORY = 10.0
"""Seconds in which the credit of calls halves, and that time earns credit for at most: Finagle's TTL."""

_SAVINGS = 10.0
"""Retries. This much credit does not fade: a program that makes one call a minute would otherwise never have any."""

_ROUNDING = 1e-9


class RetryBudget:
    """Limits retries to a share of the calls. Share the object between policies and stacks to share the budget.

    A retry costs 1. Each call adds `ratio`, and each second adds `min_per_second`; the first 10 seconds' worth is there
    from the start. When less than 1 is left, the caller gets a failure at once.

    Args:
        ratio: retries per call, from 0 to 1.
        min_per_second: retries per second that are allowed even if there are few calls; at most 10 s of them add up.

    Raises:
        ConfigurationError: a number is out of range.
    """

    def __init__(self, ratio: float = 0.2, min_per_second: float = 10) -> None:
        self.ratio = check_number(
            "ratio", ratio, Numbers("a number from 0 to 1, the retries per call", high=1)
        )
        self.min_per_second = check_number("min_per_second", min_per_second, AT_LEAST_ZERO)
        self._most = self._steady = _MEMORY * min_per_second
        self._earned = 0.0
        self._at = math.inf
        self._renew_lock()
        after_fork(self, RetryBudget._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()  # A signal handler that sends must not hang here.

    def deposit(self, now: float) -> None:
        """Add the credit of one call; `now` is an instant in seconds."""
        with self._lock:
            self._advance(now)
            self._earned += self.ratio

    def withdraw(self, now: float) -> bool:
        """Whether a retry may be made; if so, it is paid for."""
        with self._lock:
            self._advance(now)
            if self._steady + self._earned < 1 - _ROUNDING:
                return False
            paid = min(self._steady, 1.0)
            self._steady -= paid
            self._earned -= 1 - paid
            return True

    def _advance(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._at = now if self._at == math.inf else max(self._at, now)
        self._steady = min(self._most, self._steady + self.min_per_second * passed)
        if self._earned > _SAVINGS:
            self._earned = max(_SAVINGS, self._earned * 0.5 ** (passed / _MEMORY))

    def __reduce__(self) -> tuple[Any, ...]:
        return RetryBudget, (self.ratio, self.min_per_second)

    @even_half_made
    def __repr__(self) -> str:
        return f"RetryBudget(ratio={self.ratio:g}, min_per_second={self.min_per_second:g})"
