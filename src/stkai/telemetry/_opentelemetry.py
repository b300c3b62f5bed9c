"""Events as OpenTelemetry metrics, from the table, and as spans.

See https://opentelemetry.io/docs/specs/semconv/http/http-spans/.
"""

from collections.abc import Callable
from typing import Any, Final, cast

from opentelemetry import context, metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from .. import events
from ..events import Event
from ._metrics import DURATIONS, OTHER, Labels, Metric, Recorder, labels_of, method_of

_INSTRUMENTS: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "counter": ("create_counter", "add", {}),
    "active": ("create_up_down_counter", "add", {}),
    "gauge": ("create_gauge", "set", {}),
    "common": ("create_gauge", "set", {}),
    "histogram": ("create_histogram", "record", {"explicit_bucket_boundaries_advisory": DURATIONS}),
}
"""For each kind of metric: the methods that create an instrument and record a value, and further arguments."""

_NO_SPANS: Final = getattr(context, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY", "suppress_http_instrumentation")
"""The context key that opentelemetry-instrumentation-httpx checks before it starts a span of its own."""

_NOTES: Final[dict[type[Event], tuple[str, tuple[str, ...]]]] = {
    events.RetryScheduled: ("retry scheduled", ("delay", "cause")),
    events.Waited: ("waited", ("layer", "seconds")),
    events.Rejected: ("rejected", ("layer", "wait", "limit")),
    events.RateChanged: ("rate changed", ("old", "new", "reason")),
    events.TokenRenewed: ("token renewed", ("seconds", "reason")),
}
"""The events that are added to the span of their call, and their fields that are recorded."""


def recorder_of(provider: MeterProvider | None) -> Recorder:
    """A recorder with instruments of that provider, by default the global one."""
    meter = metrics.get_meter("stkai", meter_provider=provider)

    def made(metric: Metric) -> Callable[[float, Labels], object]:
        make, record, more = _INSTRUMENTS[metric.kind]
        instrument = getattr(meter, make)(metric.name, unit=metric.unit, description=metric.text, **more)
        return cast("Callable[[float, Labels], object]", getattr(instrument, record))

    return Recorder(made)


_RUNNING: Final = context.create_key("stkai")
"""The context key under which a context stores its `_Running`."""


class _Running:
    """A started span, and the context in which it is current."""

    __slots__ = ("_context", "_has_ended", "_token", "sent", "span")

    def __init__(self, span: Span, inside: Context) -> None:
        self.span = span
        self.sent, self._has_ended = 0, False
        self._context = context.set_value(_RUNNING, self, inside)
        self._token = context.attach(self._context)

    def end(self, event: events.CallFinished | events.AttemptFinished) -> None:
        labels = labels_of(event, "http.response.status_code", "error.type")
        self.span.set_attributes(labels)
        if isinstance(event, events.CallFinished):
            self.span.set_attribute("stkai.attempts", event.attempts)
        if "error.type" in labels:
            self.span.set_status(Status(StatusCode.ERROR))
        self._has_ended = True
        # A task other than the one that started the span must not reset the context. With two of these listeners, the
        # first one's context ends before the second one's, which is nested in it.
        running: Any = self
        while running is not None and running._has_ended and context.get_current() is running._context:  # noqa: SLF001
            context.detach(running._token)  # noqa: SLF001
            running = context.get_value(_RUNNING)
        self.span.end()


class Spans:
    """Starts and ends a span for each call, and one for each of its attempts."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._tracer = trace.get_tracer("stkai", tracer_provider=provider)
        self._calls: dict[int, _Running] = {}
        self._attempts: dict[tuple[int, int], _Running] = {}

    def __call__(self, event: Event) -> None:
        call = event.call
        match event:
            case events.CallStarted():
                span = self._tracer.start_span(f"stkai {_span_name(event)}", attributes=_attributes(event))
                self._calls[call.id] = _Running(span, trace.set_span_in_context(span))
            case events.AttemptStarted():
                self._attempt_started(event)
            case events.CallFinished() if call.id in self._calls:
                self._calls.pop(call.id).end(event)
            case events.AttemptFinished() if (call.id, call.attempt) in self._attempts:
                self._attempts.pop((call.id, call.attempt)).end(event)
            case _ if call.id in self._calls and type(event) in _NOTES:
                name, fields = _NOTES[type(event)]
                noted = {f"stkai.{field}": getattr(event, field) for field in fields}
                self._calls[call.id].span.add_event(name, noted)

    def _attempt_started(self, event: events.AttemptStarted) -> None:
        call = self._calls.get(event.call.id)
        outside = context.get_current() if call is None else trace.set_span_in_context(call.span)
        attributes = _attributes(event)
        # A request that is sent again after a 401 belongs to the same attempt.
        again = event.resend_count if call is None else max(event.resend_count, call.sent)
        if again:
            attributes["http.request.resend_count"] = again
        if call is not None:
            call.sent = again + 1
        span = self._tracer.start_span(
            _span_name(event), context=outside, kind=SpanKind.CLIENT, attributes=attributes
        )
        inside = context.set_value(_NO_SPANS, True, trace.set_span_in_context(span, outside))
        propagate.inject(event.headers, context=inside)
        self._attempts[event.call.id, event.call.attempt] = _Running(span, inside)


def _attributes(event: Event) -> Labels:
    return labels_of(event, "http.request.method", "server.address", "server.port")


def _span_name(event: Event) -> str:
    """The method; the conventions use HTTP if it is not a standard one."""
    method = method_of(event.call.method)
    return "HTTP" if method == OTHER else method
