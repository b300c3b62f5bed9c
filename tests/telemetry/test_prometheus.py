"""Metrics of a stack, as a real scrape returns them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.parser import text_string_to_metric_families

import stkai
from stkai import AimdLimiter, AuthProvider, RequestOptions, RetryPolicy, StackBuilder, TokenBucket
from stkai.telemetry import PrometheusListener
from stkai.testing import FakeClock
from stkai.transports import adaptive, auth, retry, token_bucket

from ..support.world import World

URL = "https://api.example.com/v1/things?key=secret"


class Provider(AuthProvider):
    def get_access_token(self) -> str:
        return "secret-token"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def endpoint(registry: CollectorRegistry) -> Iterator[str]:
    server, thread = start_http_server(0, "127.0.0.1", registry)
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()
    thread.join()


def scrape(endpoint: str) -> tuple[str, dict[tuple[str, frozenset[tuple[str, str]]], float]]:
    """The text of a scrape, and its samples by name and labels; empty labels are left out."""
    text, samples = httpx.get(endpoint).text, {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset((name, value) for name, value in sample.labels.items() if value)
            samples[sample.name, labels] = sample.value
    return text, samples


async def test_a_scrape_shows_what_happened_and_nothing_secret(
    world: World, registry: CollectorRegistry, endpoint: str
) -> None:
    limiter = AimdLimiter(60, 60.0, penalty_factor=0.5)
    layers = [
        retry(RetryPolicy(initial_delay=1.0)),
        auth(Provider()),
        token_bucket(TokenBucket(1, 2.0)),
        adaptive(limiter),
    ]
    listener = PrometheusListener(registry)
    builder = StackBuilder(layers, clock=FakeClock(), listener=[listener], random=lambda: 0.0)
    transport = world.build(builder, world.wire(429, httpx.ConnectError("refused"), 200))
    await world.send(transport, httpx.Request("POST", URL))
    options = {"stkai": RequestOptions(max_wait_time=0.5)}
    with pytest.raises(stkai.TokenAcquisitionTimeoutError):
        await world.send(transport, httpx.Request("POST", URL, extensions=options))
    text, samples = scrape(endpoint)
    host = ("server_address", "api.example.com")
    post, port = ("http_request_method", "POST"), ("server_port", "443")

    def value(name: str, *labels: tuple[str, str]) -> float:
        return samples[name, frozenset({host, *labels})]

    count = "http_client_request_duration_seconds_count"
    assert value(count, post, port, ("http_response_status_code", "429"), ("error_type", "429")) == 1
    assert value(count, post, port, ("error_type", "ConnectError")) == 1
    assert value(count, post, port, ("http_response_status_code", "200")) == 1
    assert value("stkai_retries_total", ("stkai_cause", "429")) == 1
    assert value("stkai_retries_total", ("stkai_cause", "ConnectError")) == 1
    assert value("stkai_rejections_total", ("stkai_layer", "token_bucket")) == 1
    assert value("stkai_queue_duration_seconds_count", ("stkai_layer", "token_bucket")) == 1
    assert value("stkai_token_renewal_duration_seconds_count") == 1
    assert value("stkai_permits_total") == 3
    assert value("stkai_calls_active") == 0
    assert value("stkai_rate_per_second") == 0.5
    assert 'le="0.005"' in text
    assert 'le="120.0"' in text
    assert "secret" not in text


def test_listeners_with_the_same_registry_share_their_metrics(registry: CollectorRegistry) -> None:
    call = stkai.CallInfo(id=1, method="GET", host="api.example.com")
    for _ in range(2):
        PrometheusListener(registry)(stkai.AttemptStarted(call=call))
    assert registry.get_sample_value("stkai_permits_total", {"server_address": "api.example.com"}) == 2


def test_the_usual_registry_is_the_default() -> None:
    PrometheusListener()
    PrometheusListener()
    assert "stkai_retries" in {family.name for family in REGISTRY.collect()}


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(
        stkai.ConfigurationError, match=r'PrometheusListener needs .*: pip install "stkai\[prometheus\]"'
    ):
        PrometheusListener()


WORKER = """
import stkai
from prometheus_client import CollectorRegistry
from stkai.telemetry import PrometheusListener

call = stkai.CallInfo(id=1, method="POST", host="api.example.com")
listener = PrometheusListener(CollectorRegistry())
listener(stkai.RateChanged(call=call, old=2.0, new=5.0, reason="found"))
listener(stkai.RateChanged(call=call, old=50.0, new=75.0, reason="found", share="team"))
listener(stkai.StoreLost(call=call, share="team", store="redis", reason="refused"))
"""


def scraped_of(folder: Path, script: str) -> tuple[CollectorRegistry, list[int]]:
    """What two workers that ran the script have reported, and their process ids."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script], env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
        )
        for _ in range(2)
    ]
    assert [worker.wait() for worker in workers] == [0, 0]
    scraped = CollectorRegistry()
    collect: Any = MultiProcessCollector
    collect(scraped, path=str(folder))
    return scraped, [worker.pid for worker in workers]


def test_several_workers_report_the_one_rate_of_their_group_and_the_sum_of_their_own(tmp_path: Path) -> None:
    scraped, _ = scraped_of(tmp_path, WORKER)
    host = {"server_address": "api.example.com"}
    assert scraped.get_sample_value("stkai_rate_per_second", host) == 10.0
    assert scraped.get_sample_value("stkai_share_rate_per_second", {"stkai_share": "team"}) == 75.0


def test_an_outage_of_a_worker_that_has_ended_is_over(tmp_path: Path) -> None:
    scraped, workers = scraped_of(tmp_path, WORKER)
    share = {"stkai_share": "team"}
    assert scraped.get_sample_value("stkai_store_outages", share) == 2.0
    end: Any = mark_process_dead
    for worker in workers:
        end(worker, path=str(tmp_path))
    assert scraped.get_sample_value("stkai_store_outages", share) is None
    assert scraped.get_sample_value("stkai_store_losses_total", share) == 2.0
