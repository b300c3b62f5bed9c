"""The benchmark on real servers, and the models of them: they refuse as the real ones do, and nobody starves."""

from collections import Counter
from contextlib import closing
from dataclasses import replace

import httpx
import pytest
from benchmarks.adaptive.crowd import Report, run
from benchmarks.adaptive.distance import Distant
from benchmarks.adaptive.gateways import Apache, Envoy, Express, Gateway, HaProxy, Limits, Nginx, Varnish
from benchmarks.adaptive.models import CountingWindow, LeakyBucket
from benchmarks.adaptive.rows import ROWS, Goal, Row
from benchmarks.adaptive.servers import cells, figures, main, mean

from stkai import HttpClient, Layer, StackBuilder, send_all
from stkai.events import AttemptFinished, Event
from stkai.transports import Attempt, Flow, LayerTransport

from ..support.forked import forkserver

ROW = {row.name: row for row in ROWS}


def _counts(bucket: LeakyBucket | CountingWindow, *instants: float) -> list[bool]:
    return [bucket.admit(instant) == 0.0 for instant in instants]


def test_a_leaky_bucket_without_a_burst_spaces_requests_out() -> None:
    assert _counts(LeakyBucket(20, 1.0), 10.0, 10.0, 10.049, 10.05, 10.099, 10.1) == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]


def test_what_a_leaky_bucket_refuses_does_not_fill_it() -> None:
    bucket = LeakyBucket(20, 1.0, burst=2)
    assert _counts(bucket, *[1.0] * 10) == [True] * 3 + [False] * 7
    assert bucket.admit(1.0) == pytest.approx(0.05)
    assert _counts(bucket, 1.05, 1.05) == [True, False]


def test_a_delaying_bucket_lets_each_request_wait_for_those_before_it() -> None:
    bucket, delays = LeakyBucket(20, 1.0, burst=3, delays=True), []
    for _ in range(4):
        assert bucket.admit(1.0) == 0.0
        delays.append(bucket.delay)
    assert delays == pytest.approx([0.0, 0.05, 0.1, 0.15])
    assert bucket.admit(1.0) > 0


def test_a_window_that_counts_refusals_stays_closed_to_those_who_keep_asking() -> None:
    window = CountingWindow(4, 1.0)
    assert _counts(window, *[1.0] * 8) == [True] * 4 + [False] * 4
    assert _counts(window, 2.0, 2.1) == [False, False]
    assert _counts(window, 4.0) == [True]


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("gateway", "at_once"),
    [
        (Nginx(1, "m", burst=2), 3),
        (HaProxy(5, 60.0), 5),
        (Envoy(1, 3600.0, 4, describes=True), 4),
        (Varnish(4, 3600.0), 4),
        (Apache(4, 3600), 4),
        (Express(4, 3600.0), 4),
        (Limits(4, 3600.0, "FixedWindow"), 4),
    ],
)
def test_a_real_server_refuses_without_saying_when_to_come_back(gateway: Gateway, at_once: int) -> None:
    if gateway.missing:
        pytest.skip(f"{gateway.missing} is not installed")
    with gateway.serving() as url, httpx.Client() as client:
        answers = [client.post(url, json={}) for _ in range(8)]
    assert Counter(answer.status_code for answer in answers) == {200: at_once, 429: 8 - at_once}
    assert not any("retry-after" in answer.headers for answer in answers)


@pytest.mark.real_time
@pytest.mark.parametrize("name", ["burst", "strict", "slots"])
def test_on_real_nginx_nothing_fails_and_no_program_starves(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiprocessing.get_context", forkserver)
    row = replace(ROW[name], processes=2, threads=2, seconds=2.5)
    if row.gateway.missing:
        pytest.skip(f"{row.gateway.missing} is not installed")
    reports = run(row, "none", seed=1)
    assert [report.number for report in reports] == [0, 1]
    # Of 25 or more that the server accepts in that time from one process alone.
    assert min(len(report.accepted) for report in reports) >= 3
    assert sum(report.failed for report in reports) == 0
    # At first, every pair of requests that looks for the spacing of the server costs a refusal.
    assert sum(len(report.refused) for report in reports) <= 2 * sum(
        len(report.accepted) for report in reports
    )


def refusals(layer: LayerTransport, request: httpx.Request, attempt: Attempt) -> Flow:
    """The layer of docs/adaptive.md."""
    response = yield from layer.forward(request, attempt)
    if response.status_code == 503:
        response.status_code = 429
    return response


@pytest.mark.real_time
def test_a_distant_server_answers_as_a_near_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.get_context", forkserver)
    gateway = Distant(Nginx(1, "m", burst=2), 0.001, 0.01)
    if gateway.missing:
        pytest.skip(f"{gateway.missing} is not installed")
    with gateway.serving() as url, httpx.Client() as client:
        answers = [client.post(url, json={}) for _ in range(8)]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 5


@pytest.mark.real_time
def test_a_layer_can_say_that_the_503s_of_an_nginx_are_refusals() -> None:
    gateway, answers = Nginx(20, burst=5, status=503), Counter[int | None]()
    if gateway.missing:
        pytest.skip(f"{gateway.missing} is not installed")

    def count(event: Event) -> None:
        if isinstance(event, AttemptFinished):
            answers[event.status] += 1

    layers = StackBuilder.standard(auth=None, rate_limit="adaptive").layer(Layer("refusals", refusals)).layers
    with (
        gateway.serving() as url,
        HttpClient(StackBuilder(layers, listener=[count]).build()) as client,
        closing(send_all(client, [httpx.Request("POST", url)] * 60, max_in_flight=16)) as outcomes,
    ):
        assert {outcome.response and outcome.response.status_code for outcome in outcomes} == {200}
    # Without it, there are 30 or more, and calls that fail if it goes on for longer.
    assert (answers[200], answers[503] <= 15) == (60, True)


def test_figures_are_those_of_a_run() -> None:
    row = replace(ROW["burst"], seconds=10.0, warm=5.0, processes=2)
    reports = [
        Report(0, [float(second) for second in range(10)], [1.0, 2.0], 0),
        Report(1, [6.0, 7.0], [], 1),
    ]
    found = figures(row, reports)
    assert [found.used, found.used_warm] == pytest.approx([12 / 200, 7 / 100])
    assert [found.refused, found.failed] == pytest.approx([2 / 12, 1 / 12])
    assert [found.jain, found.least] == pytest.approx([144 / 208, 2 / 6])
    assert mean([found, replace(found, least=0.1, used=1.0)]) == replace(
        found, least=0.1, used=(found.used + 1) / 2
    )


def test_a_figure_that_misses_its_goal_is_marked() -> None:
    row = replace(ROW["burst"], goals=(Goal(0.9, 0.1, 0.9, 0.5), None))
    found = replace(
        figures(row, [Report(0, [1.0], [], 0)]), used_warm=0.896, refused=0.11, jain=0.95, least=0.3
    )
    assert cells(row, "none", found)[2:6] == ["0.90", "**0.11**", "0.95", "**0.30**"]
    assert cells(row, "retries", found)[2:6] == ["0.90", "0.11", "0.95", "0.30"]


def test_a_server_that_is_not_installed_is_skipped_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    main(["--rows", "burst", "--strategies", "none"])
    assert "nginx, burst=5 nodelay: skipped, nginx is not installed" in capsys.readouterr().out


def test_every_strategy_runs_on_a_server_whose_quota_it_may_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others as well: a table of our own strategies alone shows nothing about them."""
    monkeypatch.setattr("benchmarks.adaptive.gateways.shutil.which", lambda name: name)
    asked = list[tuple[str, str]]()

    def note(row: Row, strategy: str, seed: int) -> list[Report]:
        asked.append((row.name, strategy))
        return [Report(0, [1.0], [], 0)]

    monkeypatch.setattr("benchmarks.adaptive.servers.run", note)
    main(["--rows", "burst", "slots"])
    free = ["none", "retries", "botocore"]
    assert [strategy for name, strategy in asked if name == "slots"] == free
    assert {strategy for name, strategy in asked if name == "burst"} == {
        *free, "numbers", "shared", "share", "0.4.18",
    }  # fmt: skip
    assert "0.4.18" in capsys.readouterr().out


def test_rows_have_unique_names() -> None:
    assert len(ROW) == len(ROWS)
    assert all(isinstance(row, Row) for row in ROWS)
