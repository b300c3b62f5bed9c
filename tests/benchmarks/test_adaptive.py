"""The simulation behind the benchmark of the adaptive limiter: it is honest, repeatable, and measures what it says."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.adaptive.goals import GOALS, judge, needed_cases
from benchmarks.adaptive.metrics import Result, Summary, summarise, windows_to_regain
from benchmarks.adaptive.runner import run_cases
from benchmarks.adaptive.scenario import SERVERS, Scenario, ServerKind
from benchmarks.adaptive.sections import Section
from benchmarks.adaptive.server import Arrival
from benchmarks.adaptive.simulation import Call, Trace, simulate
from benchmarks.adaptive.strategies import ADAPTIVE, ALL, NO_LIMITER, Strategy

SLOW = Scenario(
    server="leaky",
    processes=4,
    quota=2,
    window=1.0,
    burst=20,
    workers=4,
    windows=120,
    cold=20,
    retry_after=None,
)
SMALL = Scenario(processes=2, quota=20, window=10.0, workers=3, windows=6, cold=2)


@pytest.mark.parametrize("strategy", ALL, ids=str)
def test_every_strategy_gets_work_done_and_accounts_for_every_answer(strategy: Strategy) -> None:
    trace = simulate(SMALL, strategy, seed=1)
    succeeded = sum(call.succeeded for call in trace.calls)
    accepted = sum(arrival.accepted for arrival in trace.arrivals)
    assert succeeded > 50
    # Every request that the server accepted succeeded, except those in progress at the end.
    assert 0 <= accepted - succeeded <= SMALL.processes * SMALL.workers


def test_no_program_that_uses_the_whole_quota_keeps_the_others_out_of_a_bucket() -> None:
    scenario = replace(SLOW, network=(0.0005, 0.0015), service=(0.001, 0.002))
    calls = Counter(call.process for call in simulate(scenario, ADAPTIVE, seed=1).calls if call.succeeded)
    assert min(calls[number] for number in range(4)) > sum(calls.values()) / 8


def test_the_same_seed_gives_the_same_run_event_by_event_and_another_seed_another() -> None:
    first, same, other = (simulate(SMALL, ADAPTIVE, seed) for seed in (1, 1, 2))
    assert first == same
    assert first != other


@pytest.mark.parametrize("server", SERVERS)
def test_no_server_lets_in_more_than_its_quota(server: ServerKind) -> None:
    trace = simulate(replace(SMALL, server=server), NO_LIMITER, seed=1)

    accepted = [arrival.time for arrival in trace.arrivals if arrival.accepted]
    most = SMALL.quota + (10 if server == "bucket" else 0)
    for start in range(0, int(SMALL.end), int(SMALL.window)):
        assert sum(start <= time < start + SMALL.window for time in accepted) <= most


def test_the_adaptive_limiter_is_refused_far_less_often_than_no_limiter() -> None:
    refused = {
        strategy: sum(not arrival.accepted for arrival in simulate(SMALL, strategy, seed=1).arrivals)
        for strategy in (NO_LIMITER, ADAPTIVE)
    }

    assert refused[ADAPTIVE] < refused[NO_LIMITER] / 2


def test_late_processes_send_nothing_before_the_middle() -> None:
    trace = simulate(replace(SMALL, late=1), ADAPTIVE, seed=1)

    first = min(arrival.time for arrival in trace.arrivals if arrival.process == 1)
    assert 30.0 <= first < 35.0


def test_random_arrivals_come_at_their_share_of_the_quota_with_any_strategy() -> None:
    scenario = replace(SMALL, load=0.5)
    calls = [simulate(scenario, strategy, seed=1).calls for strategy in (NO_LIMITER, ADAPTIVE)]

    assert len(calls[0]) == pytest.approx(0.5 * scenario.allowed(0, scenario.end), rel=0.3)
    assert abs(len(calls[0]) - len(calls[1])) <= 3


def test_a_changed_quota_applies_from_the_middle_of_the_run() -> None:
    scenario = replace(SMALL, step=0.5)
    trace = simulate(scenario, NO_LIMITER, seed=1)

    def accepted(start: float) -> int:
        return sum(arrival.accepted and start <= arrival.time < start + 10 for arrival in trace.arrivals)

    assert (accepted(20.0), accepted(40.0)) == (20, 10)
    assert scenario.allowed(20.0, 40.0) == pytest.approx(30)


def _trace(*arrivals: tuple[float, int, bool]) -> Trace:
    """Each accepted request takes one second."""
    return Trace(
        [Arrival(*arrival) for arrival in arrivals],
        [Call(time + 1, 1.0, process, True) for time, process, accepted in arrivals if accepted],
    )


def test_figures_cover_the_requested_span() -> None:
    trace = _trace((1, 0, True), (11, 0, True), (12, 0, True), (13, 0, True), (14, 1, True), (15, 1, False))

    found = summarise(trace, SMALL, "some", 10.0, 20.0)

    assert found == Summary(
        "some", sent=5, succeeded=4, refused=1, failed=0, goodput=4 / 20, p50=1.0, p95=1.0, jain=16 / 20
    )


def test_a_quota_is_regained_when_a_whole_window_was_well_used_with_few_refusals() -> None:
    scenario = Scenario(quota=5, window=10.0, windows=6, cold=1, step=2.0)
    slow = [(30.0 + 2 * number, 0, True) for number in range(5)]
    refused = [(39.5, 0, False)] * 3
    good = [(40.0 + number, 0, True) for number in range(20)]

    assert windows_to_regain(_trace(*slow, *refused, *good), scenario) == pytest.approx(2.0)
    assert windows_to_regain(_trace(*slow), scenario) == 3.0


def test_a_case_is_run_once_for_each_seed_and_its_mean_returned() -> None:
    done: list[None] = []
    short = replace(SMALL, windows=3)
    both = run_cases([(short, ADAPTIVE)] * 2, [1, 2], advance=lambda: done.append(None))
    singles = [run_cases([(short, ADAPTIVE)], [seed])[short, ADAPTIVE] for seed in (1, 2)]

    assert len(done) == 2
    assert both[short, ADAPTIVE].steady.sent == sum(single.steady.sent for single in singles) / 2


def test_a_goal_is_judged_by_its_worst_scenario() -> None:
    good = Summary("adaptive", 100, 100, 0, 0, 1.0, 1.0, 1.0, 1.0)
    bad = Summary("adaptive", 100, 90, 10, 0, 0.9, 1.0, 1.0, 0.5)
    results = {case: Result(good, good, 1.0, ()) for case in needed_cases()}
    worst = Scenario(server="bucket")
    results[worst, ADAPTIVE] = Result(good, bad, 1.0, ())

    missed = [verdict for verdict in judge(results) if not verdict.met]

    assert {verdict.scenario for verdict in missed} == {worst}
    assert {verdict.goal for verdict in missed} == {"sliding and bucket, N = 10"}
    assert [verdict.value for verdict in missed] == pytest.approx([0.9, 10 / 90, 0.5])


def test_goals_have_unique_names() -> None:
    assert len({goal.title for goal in GOALS}) == len(GOALS)


def test_the_command_prints_the_tables_and_writes_tables_and_plots_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.adaptive import __main__ as command  # Imports matplotlib.
    from matplotlib.figure import Figure

    draw = Figure.savefig

    def draw_one(figure: Figure, path: Path, **options: Any) -> None:
        """To draw a figure takes half a second; test_plots.py draws the others."""
        draw(figure, path, **options) if path.name == "sharing-light.svg" else path.touch()

    monkeypatch.setattr(Figure, "savefig", draw_one)
    short, strategies = replace(SMALL, windows=3), [NO_LIMITER, ADAPTIVE]
    sharing = Section("sharing", "Sharing", [short, replace(short, server="bucket")], strategies)
    steps = Section("steps", "Steps", [replace(short, step=2.0)], strategies)
    monkeypatch.setattr(command, "SHARING", sharing)
    monkeypatch.setattr(command, "STEPS", steps)
    monkeypatch.setattr(command, "SECTIONS", (sharing, steps))

    command.main(["--seeds", "1", "--jobs", "1", "--out", str(tmp_path)])

    assert "fixed window, N = 2, 20 per 10 s: steady state" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        "tables.txt",
        *(f"{plot}-{mode}.svg" for plot in ("sharing", "rates", "step-2") for mode in ("light", "dark")),
    }
