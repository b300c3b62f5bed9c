"""The dashboard in the documentation queries metrics and labels that exist."""

import json
import re
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from stkai import (
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    CallInfo,
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
from stkai.telemetry import PrometheusListener

DASHBOARD = Path(__file__).parent.parent.parent / "docs" / "dashboards" / "stkai.json"
CALL = CallInfo(id=1, method="POST", host="api.example.com", port=443)

EVENTS: list[Event] = [
    CallStarted(call=CALL),
    AttemptStarted(call=CALL),
    AttemptFinished(call=CALL, status=503, seconds=0.1),
    RetryScheduled(call=CALL, attempt=1, delay=0.5, cause="503 Service Unavailable"),
    Waited(call=CALL, layer="adaptive", seconds=1.0, limit="requests"),
    Rejected(call=CALL, layer="adaptive", wait=60.0, limit=45.0),
    RateChanged(call=CALL, old=2.0, new=1.0, reason="429 Too Many Requests"),
    RateChanged(call=CALL, old=2.0, new=1.0, reason="429 Too Many Requests", share="team"),
    TokenRenewed(call=CALL, seconds=0.1, reason="none was valid"),
    CallFinished(call=CALL, status=200, seconds=1.0),
    StoreLost(call=CALL, share="team", store="redis", reason="refused"),
    StoreRestored(call=CALL, share="team", store="redis"),
    QuotaDisagreement(call=CALL, share="team", mine=1.0, theirs=2.0),
]


def test_every_panel_queries_metrics_and_labels_of_a_real_scrape() -> None:
    registry = CollectorRegistry()
    for event in EVENTS:
        PrometheusListener(registry)(event)
    scraped = generate_latest(registry).decode()
    names = set(re.findall(r"^(\w+)(?:\{| )", scraped, re.MULTILINE))
    labels = set(re.findall(r'(\w+)="', scraped))
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(asked) >= 9
    for query in asked:
        assert set(re.findall(r"\b(?:stkai|http_client)_\w+(?=\{)", query)) <= names, query
        grouped = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
        assert grouped | set(re.findall(r"(\w+)=~", query)) <= labels, query


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    registry = CollectorRegistry()
    PrometheusListener(registry)
    text = DASHBOARD.read_text()
    assert [family.name for family in registry.collect() if family.name not in text] == []
