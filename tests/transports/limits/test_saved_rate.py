"""A limiter that starts where the last one ended."""

import gc
import json
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

from stkai import AimdLimiter, ConfigurationError
from stkai.testing import FakeClock
from stkai.transports import Answer, Context, Run, Turn, adaptive
from stkai.transports._limits.pace.quota import LearnedRate
from stkai.transports._limits.saved_rate import SavedRate

from ...support.wire import Wire
from ...support.world import World

RATE = LearnedRate(2.0, 60.0)
NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def path_of(file: SavedRate) -> Path:
    assert file.path is not None
    return file.path


def answer(policy: AimdLimiter, now: float, status: int = 200, date: datetime = NOW, **headers: str) -> Turn:
    """Let a request go at `now`, and its answer come at once; returns its turn."""
    turn = Turn()
    assert policy.ask(turn, now) == 0.0
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    policy.learn(turn, Answer(now, now, httpx.Response(status, headers=named), None, lambda: date, 0.0))
    return turn


def run_a_program(*numbers: float, **options: Any) -> float:
    """Refuse one request of a limiter and let it end; return the rate at its end."""
    policy = AimdLimiter(*numbers, **options)
    for second in range(20):
        answer(policy, 5.0 * second)
    answer(policy, 100.0, 429, retry_after="59")
    rate = policy.rate
    del policy
    gc.collect()
    return rate


def saved(rate: float, window: float = 60.0, *, refused: bool = True) -> None:
    SavedRate("key").write(LearnedRate(rate, window, refused), NOW)


def test_nothing_is_kept_unless_asked_for(cache: Path) -> None:
    run_a_program()
    assert files(cache) == []


def test_the_next_program_starts_at_the_rate_of_the_last(cache: Path) -> None:
    rate = run_a_program(warm_start="team key")
    assert len(files(cache)) == 1
    assert files(cache)[0].stat().st_mode & 0o077 == 0
    policy = AimdLimiter(warm_start="team key")
    assert policy.rate == pytest.approx(rate)
    assert policy.window == 59.0
    assert AimdLimiter(warm_start="another").rate != policy.rate


def test_with_numbers_the_next_program_starts_at_the_rate_of_the_last() -> None:
    rate = run_a_program(100, 60, warm_start="key")
    assert AimdLimiter(100, 60, warm_start="key").rate == pytest.approx(rate)


def test_the_numbers_stay_the_ceiling() -> None:
    saved(50.0)
    assert AimdLimiter(100, 60, warm_start="key").rate == pytest.approx(100 / 60)


def test_a_rate_below_the_floor_is_raised_to_the_floor() -> None:
    saved(1e-300)
    for policy in (AimdLimiter(100, 60, warm_start="key"), AimdLimiter(warm_start="key")):
        assert policy.rate == pytest.approx(0.5 / 60)


def test_a_program_that_learned_nothing_leaves_the_file_alone(cache: Path) -> None:
    saved(2.0)
    before = path_of(SavedRate("key")).read_text()
    AimdLimiter(warm_start="key")
    gc.collect()
    assert path_of(SavedRate("key")).read_text() == before


def test_the_search_for_the_limit_continues_at_a_rate_that_was_never_refused() -> None:
    saved(20.0, refused=False)
    policy = AimdLimiter(warm_start="key")
    assert policy.rate == pytest.approx(20.0)
    assert "not found yet" in repr(policy)


@pytest.mark.parametrize("numbers", [(), (100, 60)])
def test_short_programs_that_are_never_refused_do_not_slow_down_from_one_to_the_next(
    numbers: tuple[float, ...],
) -> None:
    cold = AimdLimiter(*numbers).rate
    for _ in range(5):
        policy = AimdLimiter(*numbers, warm_start="key")
        assert policy.rate >= cold
        turns = [Turn() for _ in range(10)]
        for tenth in range(20):
            for turn in turns:
                now = tenth / 10
                if not turn.granted and not policy.ask(turn, now):
                    policy.learn(turn, Answer(now, now, httpx.Response(200), None, lambda: NOW, 0.0))
        del policy
        gc.collect()


def test_while_a_request_probes_after_an_absurd_wait_the_earlier_rate_is_kept() -> None:
    policy = AimdLimiter(100, 60, warm_start="key")
    for _ in range(20):
        answer(policy, 0.0)
    turn = answer(policy, 1.0, 429, retry_after="86400")
    least = 0.5 / 60
    assert policy.rate == pytest.approx(least)
    assert isinstance(turn.errand, Run)
    turn.errand.sync(60.0)
    found = SavedRate("key").read()
    assert found is not None
    assert found.rate > 2 * least


def test_a_rate_older_than_a_day_or_from_the_future_is_not_believed() -> None:
    clock = FakeClock()
    file = SavedRate("key", clock)
    file.write(RATE, clock.utcnow())
    clock.advance(86_000.0)
    assert file.read() == RATE._replace(age=86_000.0)
    clock.advance(1_000.0)
    assert file.read() is None
    file.write(RATE, clock.utcnow() + timedelta(seconds=1))
    assert file.read() is None


def text(**values: object) -> bytes:
    return json.dumps({"rate": 2.0, "window": 60.0, "refused": True, "saved": 0.0, **values}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b"x" * 100_000,
        text(rate=-1.0),
        text(rate=0),
        text(rate="fast"),
        text(rate=None),
        text(rate=float("nan")),
        text(rate=float("inf")),
        text(rate=1e300),
        text(rate=10**400),
        text(window=float("nan")),
        text(window=-60.0),
        text(window=1e300),
        text(saved=float("nan")),
        text(saved=-1e300),
        text(saved=10.0),
        text(saved="yesterday"),
    ],
    ids=lambda content: repr(content[:50]),
)
def test_a_file_that_makes_no_sense_is_treated_as_missing(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    file = SavedRate("key", clock)
    file.write(RATE, clock.utcnow())
    start = clock.utcnow().timestamp()
    path_of(file).write_bytes(content.replace(b'"saved": 0.0', f'"saved": {start}'.encode()))
    assert file.read() is None
    path_of(file).write_bytes(text(saved=start))
    assert file.read() == RATE


def test_anything_but_a_regular_file_is_not_read_and_a_link_is_replaced_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = path_of(SavedRate("key"))
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert SavedRate("key").read() is None, "and it does not wait for a writer"
    path.unlink()
    path.mkdir()
    file = SavedRate("key")
    assert file.read() is None
    file.write(RATE, NOW)
    assert [*path.parent.iterdir()] == [path], "no temporary file stays"
    path.rmdir()
    other = tmp_path / "other"
    other.write_bytes(text())
    path.symlink_to(other)
    assert SavedRate("key").read() is None
    file.write(RATE, NOW)
    assert not path.is_symlink()
    assert other.read_bytes() == text()
    assert "not a regular file" in caplog.text


@pytest.mark.parametrize("name", ["../../escape", "a/b", "x" * 1000, ".", "é" * 300])
def test_every_name_has_its_own_file_in_the_directory(cache: Path, name: str) -> None:
    SavedRate(name).write(RATE, NOW)
    SavedRate(name + "2").write(RATE._replace(rate=3.0), NOW)
    assert [path.parent for path in files(cache)] == [cache / "stkai" / "adaptive"] * 2
    found = SavedRate(name).read()
    assert found is not None
    assert found.rate == 2.0


def test_names_that_differ_only_in_case_have_file_names_that_differ_in_more() -> None:
    lower, upper = path_of(SavedRate("key")).name.lower(), path_of(SavedRate("KEY")).name.lower()
    assert lower != upper


def test_a_directory_that_cannot_be_written_is_a_warning_and_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    file = SavedRate("key")
    for _ in range(3):
        file.write(RATE, NOW)
        assert file.read() is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "set XDG_CACHE_HOME" in record.getMessage()


def test_a_user_without_a_home_starts_cold(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    run_a_program(warm_start="key")
    assert AimdLimiter(warm_start="key").rate == AimdLimiter().rate
    assert "no home directory" in caplog.text


def test_a_cache_directory_must_be_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of(SavedRate("key")).parent == tmp_path / ".cache" / "stkai" / "adaptive"


def an_answer(now: float) -> Answer:
    return Answer(now, now, None, None, lambda: NOW + timedelta(seconds=now), 0.0)


def test_news_is_saved_at_most_once_a_minute_and_the_last_at_the_end() -> None:
    file, saved_at = SavedRate("key", FakeClock()), []
    for now in range(200):
        operation = file.note(LearnedRate(float(now), 60.0), an_answer(now))
        if operation is not None:
            operation.sync(60.0)
            saved_at.append(now)
    assert saved_at == [0, 60, 120, 180]
    assert json.loads(path_of(file).read_text())["rate"] == 180.0
    file.save()
    assert json.loads(path_of(file).read_text())["rate"] == 199.0


def test_the_first_refusal_is_saved_at_once_however_short_ago_a_growing_rate_was() -> None:
    file = SavedRate("key")
    assert file.note(LearnedRate(2.0, 60.0, refused=False), an_answer(0.0)) is not None
    assert file.note(LearnedRate(3.0, 60.0, refused=False), an_answer(1.0)) is None
    assert file.note(LearnedRate(1.0, 60.0), an_answer(2.0)) is not None
    assert file.note(LearnedRate(0.9, 60.0), an_answer(3.0)) is None


def test_nothing_is_saved_again_while_there_is_no_news() -> None:
    file = SavedRate("key")
    operation = file.note(RATE, an_answer(0.0))
    assert operation is not None
    operation.sync(60.0)
    path_of(file).unlink()
    file.save()
    assert SavedRate("key").read() is None


async def test_the_first_refusal_is_saved_before_its_answer_is_returned(world: World) -> None:
    policy, clock = AimdLimiter(warm_start="key"), FakeClock()
    wire = Wire(httpx.Response(429, headers={"Retry-After": "30"}))
    transport = world.layer(adaptive(policy), wire, context=Context(clock=clock))
    response = await world.send(transport, httpx.Request("POST", "https://api.example.com/"))
    assert response.status_code == 429
    found = SavedRate("key", clock).read()
    assert found is not None
    assert found.rate == policy.rate
    assert found.window == policy.window
    assert found.refused


@pytest.mark.worlds("asyncio")
async def test_an_answer_is_returned_and_its_rate_saved_where_there_is_no_thread_to_save_it_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, clock = AimdLimiter(warm_start="key"), FakeClock()
    wire = Wire(httpx.Response(429, headers={"Retry-After": "30"}))
    transport = world.layer(adaptive(policy), wire, context=Context(clock=clock))
    no_thread = Mock(side_effect=RuntimeError("can't start new thread"))
    monkeypatch.setattr("threading.Thread.start", no_thread)
    response = await world.send(transport, httpx.Request("POST", "https://api.example.com/"))
    assert (response.status_code, no_thread.called) == (429, True)
    assert SavedRate("key", clock).read() is not None


async def test_two_limiters_in_a_list_both_save_what_one_refusal_has_shown(world: World) -> None:
    policies, clock = [AimdLimiter(warm_start="a"), AimdLimiter(100, 60, warm_start="b")], FakeClock()
    wire = Wire(httpx.Response(429, headers={"Retry-After": "30"}))
    transport = world.layer(adaptive(policies), wire, context=Context(clock=clock))
    await world.send(transport, httpx.Request("POST", "https://api.example.com/"))
    found = [SavedRate(name, clock).read() for name in ("a", "b")]
    assert [each and each.rate for each in found] == [policy.rate for policy in policies]


def test_the_limiter_starts_no_thread_and_reads_no_clock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = AimdLimiter(warm_start="key")
    monkeypatch.setattr("threading.Thread.start", None)
    date = datetime(2031, 1, 1, tzinfo=UTC)
    turn = answer(policy, 0.0, 429, date=date, retry_after="30")
    assert isinstance(turn.errand, Run)
    turn.errand.sync(60.0)
    assert json.loads(path_of(SavedRate("key")).read_text())["saved"] == date.timestamp()


@pytest.mark.parametrize("name", ["", "  ", 7, True, "\udcff", "nul\0"])
def test_an_invalid_name_is_an_error(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="warm_start must be"):
        AimdLimiter(warm_start=name)


@pytest.mark.parametrize("factor", ["penalty_factor", "recovery_factor"])
def test_plain_aimd_has_nothing_to_start_from(factor: str) -> None:
    options: Any = {factor: 0.5}
    with pytest.raises(ConfigurationError, match="plain AIMD starts at the whole quota"):
        AimdLimiter(100, 60, warm_start="key", **options)


def test_a_share_is_kept_by_its_store_under_its_own_name(cache: Path) -> None:
    with pytest.raises(ConfigurationError, match="must be the name of the share, 'team'"):
        AimdLimiter(100, 60, warm_start="key", share="team", store="file:///nowhere")
