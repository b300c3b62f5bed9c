"""OpenTelemetry metrics from events: https://opentelemetry.io/docs/specs/semconv/http/http-metrics/."""

from collections.abc import Callable
from typing import Any

from opentelemetry.metrics import Meter

from ..events import (
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    CallStarted,
    Event,
    QuotaDisagreement,
    RateChanged,
    Rejected,
    RetryScheduled,
    StoreLost,
    StoreRestored,
    TokenRenewed,
    Waited,
)
from ._labels import DURATIONS, Bounded, cause_of, error_type, method_of


class Meters:
    """Records a measurement for each event that has one."""

    def __init__(self, meter: Meter) -> None:
        self._host, self._layer, self._cause, self._share = Bounded(), Bounded(), Bounded(), Bounded()

        def seconds(name: str, description: str) -> Any:
            return meter.create_histogram(
                name, unit="s", description=description, explicit_bucket_boundaries_advisory=DURATIONS
            )

        self._request = seconds("http.client.request.duration", "Duration of HTTP client requests.")
        self._call = seconds("stkai.call.duration", "Duration of calls, with all their attempts and waits.")
        self._queue = seconds("stkai.queue.duration", "Time that requests waited for a permit of a limiter.")
        self._token = seconds("stkai.token.renewal.duration", "Time that it took to fetch an access token.")
        self._active = meter.create_up_down_counter(
            "stkai.calls.active", unit="{call}", description="Calls that have started and not finished."
        )
        self._permits = meter.create_counter(
            "stkai.permits",
            unit="{permit}",
            description="Requests sent to the wire; one behind a limiter has taken a permit.",
        )
        self._retries = meter.create_counter(
            "stkai.retries", unit="{retry}", description="Failed attempts that are retried."
        )
        self._refusals = meter.create_counter(
            "stkai.rejections",
            unit="{request}",
            description="Requests that a limiter of this program refused.",
        )
        self._rate = meter.create_gauge(
            "stkai.rate",
            unit="{request}/s",
            description="Current rate of an adaptive limiter, as of its last change.",
        )
        self._losses = meter.create_counter(
            "stkai.store.losses",
            unit="{loss}",
            description="Times the store of a shared quota could not be reached.",
        )
        self._restorations = meter.create_counter(
            "stkai.store.restorations",
            unit="{restoration}",
            description="Times the store of a shared quota answered again.",
        )
        self._disagreements = meter.create_counter(
            "stkai.quota.disagreements",
            unit="{disagreement}",
            description="Times another member of a share was found to have a different quota.",
        )
        self._handlers: dict[type[Event], Callable[[Any, dict[str, Any]], None]] = {
            CallStarted: lambda _, labels: self._active.add(1, labels),
            CallFinished: self._call_finished,
            AttemptStarted: lambda _, labels: self._permits.add(1, labels),
            AttemptFinished: self._attempt_finished,
            RetryScheduled: self._retry_scheduled,
            Waited: lambda event, labels: self._queue.record(event.seconds, self._in_layer(event, labels)),
            Rejected: lambda event, labels: self._refusals.add(1, self._in_layer(event, labels)),
            RateChanged: lambda event, labels: self._rate.set(event.new, labels),
            TokenRenewed: lambda event, labels: self._token.record(event.seconds, labels),
            StoreLost: lambda event, _: self._losses.add(1, self._of_share(event)),
            StoreRestored: lambda event, _: self._restorations.add(1, self._of_share(event)),
            QuotaDisagreement: lambda event, _: self._disagreements.add(1, self._of_share(event)),
        }

    def __call__(self, event: Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event, {"server.address": self._host(event.call.host)})

    def _call_finished(self, event: CallFinished, labels: dict[str, Any]) -> None:
        self._active.add(-1, labels)
        self._call.record(event.seconds, self._outcome(event, labels))

    def _attempt_finished(self, event: AttemptFinished, labels: dict[str, Any]) -> None:
        self._request.record(event.seconds, self._outcome(event, labels))

    def _retry_scheduled(self, event: RetryScheduled, labels: dict[str, Any]) -> None:
        self._retries.add(1, {**labels, "stkai.cause": self._cause(cause_of(event.cause))})

    def _outcome(self, event: CallFinished | AttemptFinished, labels: dict[str, Any]) -> dict[str, Any]:
        outcome = {**labels, "http.request.method": method_of(event.call.method)}
        if event.status is not None:
            outcome["http.response.status_code"] = event.status
        error = error_type(event.status, event.error)
        if error is not None:
            outcome["error.type"] = error
        return outcome

    def _in_layer(self, event: Waited | Rejected, labels: dict[str, Any]) -> dict[str, Any]:
        return {**labels, "stkai.layer": self._layer(event.layer)}

    def _of_share(self, event: StoreLost | StoreRestored | QuotaDisagreement) -> dict[str, Any]:
        return {"stkai.share": self._share(event.share)}
