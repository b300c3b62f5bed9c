"""What is simulated: a server and its quota, who sends, and what changes on the way."""

from dataclasses import dataclass
from typing import Literal

from stkai.testing._gate import RateHeaders, RetryAfter

ServerKind = Literal["fixed", "sliding", "bucket"]
SERVERS: tuple[ServerKind, ...] = ("fixed", "sliding", "bucket")

_KINDS = {"fixed": "fixed window", "sliding": "sliding window", "bucket": "bucket of 10"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One situation; it is frozen, so that a case can be looked up by it.

    Attributes:
        server: how the server counts.
        processes: how many share the quota.
        quota: requests per window, of all together.
        window: seconds.
        workers: requests that a process has under way at a time.
        windows: length of the run.
        cold: how many of the windows, at the start, are reported apart.
        load: Poisson arrivals at this share of the quota; None for an endless backlog.
        step: the factor by which the quota changes in the middle of the run.
        late: how many of the processes start in the middle of the run only.
        retry_after: what a 429 says, as `stkai.testing.QuotaServer` takes it.
        headers: rate limit headers of a fixed window, likewise.
    """

    server: ServerKind = "fixed"
    processes: int = 10
    quota: int = 100
    window: float = 60.0
    workers: int = 8
    windows: int = 20
    cold: int = 5
    load: float | None = None
    step: float | None = None
    late: int = 0
    retry_after: RetryAfter = "true"
    headers: RateHeaders = None

    @property
    def end(self) -> float:
        """Seconds that the run takes."""
        return self.windows * self.window

    @property
    def middle(self) -> float:
        """The instant of what happens in the middle of the run; a window starts with it."""
        return self.windows // 2 * self.window

    @property
    def steady(self) -> float:
        """The instant from which figures are those of the steady state."""
        return self.middle if self.late else self.cold * self.window

    @property
    def quotas(self) -> list[tuple[float, int]]:
        """The quota per window, as pairs of the instant from which it holds, and the quota."""
        steps = [(0.0, self.quota)]
        if self.step is not None:
            steps.append((self.middle, round(self.quota * self.step)))
        return steps

    def allowed(self, start: float, end: float) -> float:
        """Requests that the quota allows between two instants."""
        ends = [instant for instant, _ in self.quotas[1:]] + [float("inf")]
        return sum(
            quota * max(0.0, min(end, until) - max(start, since)) / self.window
            for (since, quota), until in zip(self.quotas, ends, strict=True)
        )

    def __str__(self) -> str:
        parts = [_KINDS[self.server], f"N = {self.processes}"]
        if (self.quota, self.window) != (100, 60.0):
            parts.append(f"{self.quota} per {self.window:g} s")
        if self.load is not None:
            parts.append(f"arrivals at {self.load:g} of the quota")
        if self.step is not None:
            parts.append(f"quota x {self.step:g} in mid-run")
        if self.late:
            parts.append(f"{self.late} of them join in mid-run")
        if self.retry_after is None:
            parts.append("no Retry-After")
        elif self.retry_after != "true":
            value = "a date" if self.retry_after == "date" else f"always {self.retry_after:g} s"
            parts.append(f"Retry-After {value}")
        if self.headers is not None:
            parts.append(f"{self.headers} headers")
        return ", ".join(parts)
