"""The simulated scenario: a server and its quota, the senders, and changes during the run."""

from dataclasses import dataclass
from typing import Literal

from stkai.testing._service import RetryAfter

from .rate_headers import RateHeaders

ServerKind = Literal["fixed", "sliding", "bucket", "leaky", "delaying", "counting"]
SERVERS: tuple[ServerKind, ...] = ("fixed", "sliding", "bucket")

_KINDS = {"fixed": "fixed window", "sliding": "sliding window", "counting": "window that counts refusals"}

_ABSURD = 86400.0
"""Seconds: a `Retry-After` that cannot be true of a quota per minute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One situation; frozen, so that cases can be looked up by it.

    Attributes:
        server: how the server counts. The last three are nginx with and without `nodelay`, and HAProxy: see models.py.
        processes: how many share the quota.
        quota: requests per window, for all processes together.
        window: seconds.
        burst: of a leaky bucket; 0 spaces all requests out.
        workers: requests that a process has under way at a time.
        windows: length of the run.
        cold: how many windows at the start are reported separately.
        load: Poisson arrivals at this share of the quota; None for an endless backlog.
        step: the factor by which the quota changes in the middle of the run.
        late: how many of the processes start only in the middle of the run.
        retry_after: what a 429 says, as `stkai.testing.QuotaServer` takes it.
        headers: rate limit headers of a fixed window.
        network: seconds that the network takes, each way, at least and at most.
        service: seconds that the work on an accepted request takes, at least and at most.
        told: what the limiter is told: the true quota (True), nothing (None), or a quota and a window.
        absurd: one in so many refusals asks for a day; 0 for none.
        in_flight: the server has no quota, but can work on only so many requests at a time.
        busy: the status with which it refuses any further one; None if it works on all at once, ever more slowly.
        refused: the server has no quota, but refuses this fraction of all requests at random; `quota` is then what the
            workers could send.
        batch: how many windows' worth of requests all processes together have to send; None for an endless backlog.
    """

    server: ServerKind = "fixed"
    processes: int = 10
    quota: int = 100
    window: float = 60.0
    burst: int = 0
    workers: int = 8
    windows: int = 20
    cold: int = 5
    load: float | None = None
    step: float | None = None
    late: int = 0
    retry_after: RetryAfter = "true"
    headers: RateHeaders | None = None
    network: tuple[float, float] = (0.005, 0.045)
    service: tuple[float, float] = (0.16, 0.24)
    told: Literal[True] | tuple[int, float] | None = True
    absurd: int = 0
    in_flight: int | None = None
    busy: int | None = 429
    refused: float = 0.0
    batch: float | None = None

    @property
    def depth(self) -> float:
        """Requests that a bucket server lets in at once: a tenth of its quota."""
        return max(1.0, self.quota / 10)

    @property
    def share_of_batch(self) -> int:
        """Requests that each process has to send."""
        return max(1, round((self.batch or 0.0) * self.quota / self.processes))

    @property
    def ideal(self) -> float:
        """Seconds that the quota needs for the batch; at least those of one call."""
        needed = self.share_of_batch * self.processes * self.window / self.quota
        return max(needed, self.service[1] + 0.01)

    def retry_after_of(self, refusal: int) -> float | None:
        """What refusal number `refusal` asks for, if that is not the server's usual answer."""
        return _ABSURD if self.absurd and refusal % self.absurd == 0 else None

    @property
    def end(self) -> float:
        """Seconds that the run takes."""
        return self.windows * self.window

    @property
    def middle(self) -> float:
        """The instant of the change in the middle of the run; a window starts at it."""
        return self.windows // 2 * self.window

    @property
    def steady(self) -> float:
        """The instant at which the steady state begins."""
        return self.middle if self.late else self.cold * self.window

    @property
    def quotas(self) -> list[tuple[float, int]]:
        """The quota per window, as pairs of the instant from which it holds, and the quota."""
        steps = [(0.0, self.quota)]
        if self.step is not None:
            steps.append((self.middle, round(self.quota * self.step)))
        return steps

    def allowed(self, start: float, end: float) -> float:
        """Requests that the server allows between two instants."""
        if self.in_flight is not None:
            return (end - start) * self.in_flight / (sum(self.service) / 2)
        ends = [instant for instant, _ in self.quotas[1:]] + [float("inf")]
        return sum(
            quota * max(0.0, min(end, until) - max(start, since)) / self.window
            for (since, quota), until in zip(self.quotas, ends, strict=True)
        )

    @property
    def _kind(self) -> str:
        if self.in_flight is not None:
            return f"{self.in_flight} in flight, {self.busy or 'slower'} above"
        if self.refused:
            return f"{self.refused:.0%} refused at random"
        if self.server in ("leaky", "delaying"):
            spaced = f"leaky bucket, burst {self.burst}" if self.burst else "strict spacing"
            return spaced + " delayed" * (self.server == "delaying")
        return _KINDS.get(self.server, f"bucket of {self.depth:g}")

    def __str__(self) -> str:
        parts = [self._kind, f"N = {self.processes}"]
        if self.in_flight is None and not self.refused and (self.quota, self.window) != (100, 60.0):
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
        if self.service != (0.16, 0.24):
            parts.append(f"answers take {self.service[0]:g} to {self.service[1]:g} s")
        if self.told is None:
            parts.append("no numbers")
        elif self.told is not True:
            parts.append(f"told {self.told[0]} per {self.told[1]:g} s")
        if self.absurd:
            parts.append(f"a day asked for in every {self.absurd}th refusal")
        if self.batch is not None:
            parts.append(f"a batch of {self.batch:g} windows")
        return ", ".join(parts)
