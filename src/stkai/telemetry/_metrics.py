"""The metrics of a stack: a table of instruments, and what each event records, for both OpenTelemetry and Prometheus.

Labels have few distinct values, since each combination is a time series. Names and units follow
https://opentelemetry.io/docs/specs/semconv/http/http-metrics/.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, Literal

from .. import events
from ..events import Event

OTHER: Final = "_OTHER"
"""The semantic conventions' replacement for an unknown value."""

DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120)
"""Bucket bounds in seconds. Those of the semantic conventions end at 10 s, but models often take longer to answer."""

_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_MAX_VALUES: Final = 200
"""The maximum number of distinct values of a label, such as hosts; all further values share one series."""

_CAUSE: Final = re.compile(r"\d{3}|[A-Za-z_]\w*(?=:|$)")

Labels = dict[str, str | int]
"""Attributes of a measurement, without those that do not apply."""

_Value = Callable[[Any], float | None]
"""What an instrument records for an event; None for nothing."""


@dataclass(frozen=True, eq=False)
class Metric:
    name: str  # As OpenTelemetry writes it.
    # An "active" count goes up and down. All processes report the same value of a "common" gauge.
    kind: Literal["counter", "active", "gauge", "common", "histogram"]
    unit: str  # Seconds ("s"), or what it counts.
    text: str
    labels: tuple[str, ...]  # The attributes that its measurements may have.
    values: Mapping[type[Event], _Value]  # What it records for each kind of event.


_SERVER: Final = ("server.address",)
_OUTCOME: Final = ("http.request.method", *_SERVER, "http.response.status_code", "error.type")
_LAYER: Final = (*_SERVER, "stkai.layer")
_SHARE: Final = ("stkai.share",)

_seconds: Final[_Value] = attrgetter("seconds")


def _one(_: Event) -> float:
    return 1


# fmt: off
METRICS: Final = (
    Metric(
        "http.client.request.duration", "histogram", "s", "Duration of HTTP client requests.",
        (*_OUTCOME, "server.port"), {events.AttemptFinished: _seconds},
    ),
    Metric(
        "stkai.call.duration", "histogram", "s", "Duration of calls, with all their attempts and waits.",
        _OUTCOME, {events.CallFinished: _seconds},
    ),
    Metric(
        "stkai.queue.duration", "histogram", "s", "Time that requests waited for a permit of a limiter.",
        (*_LAYER, "stkai.limit"), {events.Waited: _seconds},
    ),
    Metric(
        "stkai.token.renewal.duration", "histogram", "s", "Time that it took to fetch an access token.",
        _SERVER, {events.TokenRenewed: _seconds},
    ),
    Metric(
        "stkai.calls.active", "active", "{call}", "Calls that have started and not finished.",
        _SERVER, {events.CallStarted: _one, events.CallFinished: lambda _: -1},
    ),
    Metric(
        "stkai.permits", "counter", "{permit}",
        "Requests sent to the wire; one behind a limiter has taken a permit.",
        _SERVER, {events.AttemptStarted: _one},
    ),
    Metric(
        "stkai.retries", "counter", "{retry}", "Failed attempts that are retried.",
        (*_SERVER, "stkai.cause"), {events.RetryScheduled: _one},
    ),
    Metric(
        "stkai.rejections", "counter", "{request}", "Requests that a limiter of this program refused.",
        _LAYER, {events.Rejected: _one},
    ),
    Metric(
        "stkai.rate", "gauge", "{request}/s",
        "Current rate of this process's adaptive limiter, as of its last change.",
        _SERVER, {events.RateChanged: lambda event: event.new if event.share is None else None},
    ),
    Metric(
        "stkai.share.rate", "common", "{request}/s",
        "Current rate of a whole group that shares an adaptive limiter: every member reports the same one.",
        _SHARE, {events.RateChanged: lambda event: None if event.share is None else event.new},
    ),
    Metric(
        "stkai.store.losses", "counter", "{loss}", "Times the store of a shared quota could not be reached.",
        _SHARE, {events.StoreLost: _one},
    ),
    Metric(
        "stkai.store.restorations", "counter", "{restoration}",
        "Times the store of a shared quota answered again.",
        _SHARE, {events.StoreRestored: _one},
    ),
    Metric(
        "stkai.store.outages", "gauge", "{outage}",
        "Whether this process cannot reach the store of a shared quota: 1, or 0 again.",
        _SHARE, {events.StoreLost: _one, events.StoreRestored: lambda _: 0},
    ),
    Metric(
        "stkai.quota.disagreements", "counter", "{disagreement}",
        "Times another member of a share was found to have a different quota.",
        _SHARE, {events.QuotaDisagreement: _one},
    ),
)
# fmt: on


def method_of(method: str) -> str:
    """The HTTP method, if it is a standard one; otherwise `OTHER`."""
    return method if method in _METHODS else OTHER


def error_type(status: int | None, error: str | None) -> str | None:
    """The name of an error's class, or a status of 400 or above; None if nothing went wrong."""
    if error is not None:  # trio groups the cancellations of a task that is connecting.
        return "Cancelled" if error == "BaseExceptionGroup" else error
    return str(status) if status is not None and status >= 400 else None


def cause_of(cause: str) -> str:
    """The status code or the error name at the start of a retry's cause."""
    found = _CAUSE.match(cause)
    return found.group() if found else OTHER


_BY_EVENT: Final = {
    kind: [(metric, metric.values[kind]) for metric in METRICS if kind in metric.values]
    for kind in {kind for metric in METRICS for kind in metric.values}
}


_LABELS: Final[dict[str, Callable[[Any], str | int | None]]] = {
    "server.address": attrgetter("call.host"),
    "server.port": attrgetter("call.port"),
    "http.request.method": lambda event: method_of(event.call.method),
    "http.response.status_code": attrgetter("status"),
    "error.type": lambda event: error_type(event.status, event.error),
    "stkai.cause": lambda event: cause_of(event.cause),
    "stkai.layer": attrgetter("layer"),
    "stkai.limit": attrgetter("limit"),
    "stkai.share": attrgetter("share"),
}


def labels_of(event: Event, *names: str) -> Labels:
    """The named labels that apply to an event, with their values."""
    labels = {name: _LABELS[name](event) for name in names}
    return {name: label for name, label in labels.items() if label}


class Recorder:
    """Records what events measure, with few values per label. `made` returns a function that records a metric."""

    def __init__(self, made: Callable[[Metric], Callable[[float, Labels], object]]) -> None:
        self._record = {metric: made(metric) for metric in METRICS}
        self._known: dict[str, set[str | int]] = defaultdict(set)

    def __call__(self, event: Event) -> None:
        for metric, measure in _BY_EVENT.get(type(event), ()):
            value = measure(event)
            if value is not None:
                labels = labels_of(event, *metric.labels).items()
                self._record[metric](value, {name: self._limited(name, label) for name, label in labels})

    def _limited(self, name: str, label: str | int) -> str | int:
        known = self._known[name]
        if label not in known and len(known) >= _MAX_VALUES:
            return OTHER
        known.add(label)
        return label
