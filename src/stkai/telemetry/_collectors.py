"""Prometheus metrics from events, under the names that OpenTelemetry's metrics have when they are exported there."""

import threading
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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

_OUTCOME: Final = ("http_request_method", "server_address", "http_response_status_code", "error_type")
_HOST: Final = ("server_address",)
_LAYER: Final = ("server_address", "stkai_layer")
_CAUSE: Final = ("server_address", "stkai_cause")
_SHARE: Final = ("stkai_share",)

_by_registry: "WeakKeyDictionary[CollectorRegistry, Collectors]" = WeakKeyDictionary()
_lock = threading.Lock()


def collectors_of(registry: CollectorRegistry) -> "Collectors":
    """The metrics in that registry; registered on first use."""
    with _lock:
        if registry not in _by_registry:
            _by_registry[registry] = Collectors(registry)
        return _by_registry[registry]


class Collectors:
    """Counts and measures each event that has a metric."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._host, self._layer, self._cause, self._share = Bounded(), Bounded(), Bounded(), Bounded()

        def seconds(name: str, text: str, labels: tuple[str, ...]) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=DURATIONS)

        self._request = seconds(
            "http_client_request_duration_seconds", "Duration of HTTP client requests.", _OUTCOME
        )
        self._call = seconds(
            "stkai_call_duration_seconds", "Duration of calls, with all their attempts and waits.", _OUTCOME
        )
        self._queue = seconds(
            "stkai_queue_duration_seconds", "Time that requests waited for a permit of a limiter.", _LAYER
        )
        self._token = seconds(
            "stkai_token_renewal_duration_seconds", "Time that it took to fetch an access token.", _HOST
        )
        self._active = Gauge(
            "stkai_calls_active",
            "Calls that have started and not finished.",
            _HOST,
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._permits = Counter(
            "stkai_permits",
            "Requests sent to the wire; one behind a limiter has taken a permit.",
            _HOST,
            registry=registry,
        )
        self._retries = Counter(
            "stkai_retries", "Failed attempts that are retried.", _CAUSE, registry=registry
        )
        self._refusals = Counter(
            "stkai_rejections", "Requests that a limiter of this program refused.", _LAYER, registry=registry
        )
        self._rate = Gauge(
            "stkai_rate_per_second",
            "Current rate of an adaptive limiter, as of its last change.",
            _HOST,
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._losses = Counter(
            "stkai_store_losses",
            "Times the store of a shared quota could not be reached.",
            _SHARE,
            registry=registry,
        )
        self._restorations = Counter(
            "stkai_store_restorations",
            "Times the store of a shared quota answered again.",
            _SHARE,
            registry=registry,
        )
        self._disagreements = Counter(
            "stkai_quota_disagreements",
            "Times another member of a share was found to have a different quota.",
            _SHARE,
            registry=registry,
        )
        self._handlers: dict[type[Event], Callable[[Any, str], None]] = {
            CallStarted: lambda _, host: self._active.labels(host).inc(),
            CallFinished: self._call_finished,
            AttemptStarted: lambda _, host: self._permits.labels(host).inc(),
            AttemptFinished: lambda event, host: self._observe(self._request, event, host),
            RetryScheduled: lambda event, host: self._retries.labels(
                host, self._cause(cause_of(event.cause))
            ).inc(),
            Waited: lambda event, host: self._queue.labels(host, self._layer(event.layer)).observe(
                event.seconds
            ),
            Rejected: lambda event, host: self._refusals.labels(host, self._layer(event.layer)).inc(),
            RateChanged: lambda event, host: self._rate.labels(host).set(event.new),
            TokenRenewed: lambda event, host: self._token.labels(host).observe(event.seconds),
            StoreLost: lambda event, _: self._losses.labels(self._share(event.share)).inc(),
            StoreRestored: lambda event, _: self._restorations.labels(self._share(event.share)).inc(),
            QuotaDisagreement: lambda event, _: self._disagreements.labels(self._share(event.share)).inc(),
        }

    def __call__(self, event: Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event, self._host(event.call.host))

    def _call_finished(self, event: CallFinished, host: str) -> None:
        self._active.labels(host).dec()
        self._observe(self._call, event, host)

    def _observe(self, histogram: Histogram, event: CallFinished | AttemptFinished, host: str) -> None:
        status = "" if event.status is None else str(event.status)
        error = error_type(event.status, event.error) or ""
        histogram.labels(method_of(event.call.method), host, status, error).observe(event.seconds)
