"""Finds the rate at which a shared quota can be used, from the server's 429s, and keeps to it.

Several processes share one quota, and none knows about the others. The policy, `AimdLimiter`, grows its rate slowly
while requests are held back and cuts it once per congestion event (additive increase, multiplicative decrease: Chiu and
Jain, 1989). A refused request then goes first. The rate grows with time, not per success, so that refusals do not grow
with the number of processes.
"""

import math
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from .._limit.limiter import Answer, RateChange, Turn
from .._limit.sharing import require_share
from .._retry.retry_after import retry_after
from . import pause
from .checks import require_no_numbers, require_parts
from .headers import read_rate_limit
from .queue import NEWS, AdaptiveQueue
from .warm import Memory, check_warm_start

_TOO_MANY_REQUESTS = 429
_NOT_ASKED_THE_QUOTA = frozenset({401, 403, 407, 408, 425})


class AimdLimiter(AdaptiveQueue):
    """A rate that adapts to what the server accepts. Share the object to share the quota within a process.

    Without numbers, it finds the quota by itself. With numbers, they are the ceiling.

    Args:
        max_requests: the whole quota, shared with others: requests per `time_window`.
        time_window: seconds. Give both numbers or neither.
        max_cost: units of cost allowed in `time_window`, such as tokens; None counts requests only. As for
            `TokenBucket`; if a server's headers state fewer tokens, the headers apply.
        min_rate_floor: least share of the quota that the rate falls to, in (0, 1]; at least half a request per window.
        penalty_factor: with it, plain AIMD: the share of the rate that a cut takes, in (0, 1]; 0.3 beside the other.
        recovery_factor: with it, plain AIMD: the share of the quota regained per window, in (0, 1]; 0.05 likewise.
        max_wait_time: seconds that a request may wait for its permit; None for as long as it takes.
        methods: HTTP methods that need a permit.
        share: a name; processes that use the same name share the quota, and what they learn about it.
        store: where the shared quota is kept: None or "file" for this machine, a URL (`file:///directory`, `redis://`,
            `rediss://`, `unix://`), or a `stkai.stores.Store`.
        warm_start: a name under which the rate is saved in the user's cache directory; a program that starts within a
            day starts at that rate. With `share`, the name of the share: its store keeps the rate. None, the
            default, saves nothing.

    Raises:
        ConfigurationError: a number is out of range or missing, the store cannot be used, or there is nothing that
            `warm_start` could save.
    """

    def __init__(
        self,
        max_requests: float | None = None,
        time_window: float | None = None,
        *,
        max_cost: float | None = None,
        min_rate_floor: float | None = None,
        penalty_factor: float | None = None,
        recovery_factor: float | None = None,
        max_wait_time: float | None = None,
        methods: Iterable[str] = frozenset({"POST"}),
        share: str | None = None,
        store: Any = None,
        warm_start: str | None = None,
    ) -> None:
        parts = {
            "min_rate_floor": min_rate_floor,
            "penalty_factor": penalty_factor,
            "recovery_factor": recovery_factor,
        }
        require_parts(parts)
        require_share(share, store)
        if max_requests is None or time_window is None:
            require_no_numbers(max_requests, time_window, parts | {"max_cost": max_cost, "share": share})
        plain = None
        if penalty_factor is not None or recovery_factor is not None:
            plain = penalty_factor or 0.3, recovery_factor or 0.05
        super().__init__(
            max_requests,
            time_window,
            max_wait_time,
            methods,
            max_cost=max_cost,
            floor_share=min_rate_floor or 0.0,
            plain=plain,
        )
        if warm_start is not None:
            check_warm_start(warm_start, share, plain=plain is not None)
            if share is None:
                self._warm_up(Memory(warm_start))
        self._reported = self._rate
        if share is not None:
            alone = partial(
                AimdLimiter,
                max_requests,
                time_window,
                min_rate_floor=min_rate_floor,
                penalty_factor=penalty_factor,
                recovery_factor=recovery_factor,
                max_cost=max_cost,
                methods=self.methods,
            )
            self._join_group(
                share, store, alone, starts_cold=plain is None, starts_warm=warm_start is not None
            )

    def _join_group(
        self,
        share: str,
        store: Any,
        alone: "Callable[[], AimdLimiter]",
        *,
        starts_cold: bool,
        starts_warm: bool,
    ) -> None:
        from .group import GroupPilot
        from .reporter import Reporter

        pilot = GroupPilot(
            self.law, self.ceiling, self.floor, self.window, starts_cold=starts_cold, starts_warm=starts_warm
        )
        self._join_share(share, store, burst=1.0, alone=alone, pilot=pilot)
        self._reporter = Reporter(self._link, self.window)

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Let the answer move the rate: a 429 holds back all requests, and a success shows how much gets through.

        A server error, or a refusal for a reason other than the quota, shows neither.
        """
        change = super().learn(turn, answer)
        self._learned.save_news(answer.now)
        return change

    def _adapt(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Let the answer change the rate of this process alone."""
        response = answer.response
        if response is None:
            return super()._adapt(turn, answer)
        if self.max_cost is not None:
            self.hear_costs(response.headers, answer.now)
        status = response.status_code
        turn.paced = status == _TOO_MANY_REQUESTS
        if self.is_interrupted():
            return None
        reading = None
        if self.listens(answer.now, refused=turn.paced):
            window = math.inf if self._search is not None else self.window
            reading = read_rate_limit(response.headers, answer.date(), window)
        if turn.paced:
            asked = retry_after(response.headers, answer.date())
            return self.refused(answer.now, answer.sent, asked, answer.chance, reading, turn.number)
        if status >= 500 or status in _NOT_ASKED_THE_QUOTA:
            return None
        return self.succeeded(answer.now, answer.sent, reading)

    def _learn_together(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Report the answer to the group through the store; adapt alone until the store is first reached."""
        member, response = self._link.member, answer.response
        if member.known is None or response is None:
            return super()._learn_together(turn, answer)
        status = response.status_code
        turn.paced = status == _TOO_MANY_REQUESTS
        if status >= 500 or status in _NOT_ASKED_THE_QUOTA:
            return None
        self._reporter.report(turn, answer, response)
        rate = float(member.known.rate)
        if abs(rate - self._reported) <= NEWS * self._reported:
            return None
        return self._report("the group's law", rate)

    def _warm_up(self, memory: Memory) -> None:
        """Start where the last program with this name ended, and save the rate for the next one."""
        self._learned.memory = memory
        weakref.finalize(self, self._learned.save)
        found = memory.recall()
        if found is None:
            return
        if self._search is not None and found.refused:
            self._search.window = min(found.window, pause.longest(0.0))
            self._adopt(self._tuned_law())
        rate = min(self.ceiling, max(self.floor, found.rate))
        if found.refused:
            self._start.over = True
            self._set_rate(rate)
        else:
            # Nothing was refused, so the limit is still unknown: start at a higher rate, but just as carefully.
            self._rate = max(self._rate, rate)

    def __repr__(self) -> str:
        known = self.ceiling < math.inf
        numbers = f"{self.ceiling * self.window:g}, {self.window:g}, " if known else ""
        if self._search is not None:
            found = "found: " if self._start.over else "quota not found yet, "
            numbers = found + (numbers or f"time_window={self.window:g}, " * self._start.over)
        shared = "" if self.share is None else f", share={self.share!r}, store={self.store!r}"
        return f"AimdLimiter({numbers}rate={self.rate:.3g}{shared})"
