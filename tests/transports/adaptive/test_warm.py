"""A limiter that starts where the last one ended."""

import gc
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from stkai import AimdLimiter, ConfigurationError
from stkai.testing import FakeClock
from stkai.transports import Answer, Turn
from stkai.transports._adaptive.warm import Keeper, Learned, Memory

RATE = Learned(2.0, 60.0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def path_of(memory: Memory) -> Path:
    assert memory.path is not None
    return memory.path


def run_a_program(*numbers: float, **options: Any) -> float:
    """Refuse one request of a limiter and let it end; return the rate at its end."""
    policy = AimdLimiter(*numbers, **options)
    for _ in range(30):
        policy.take(0.0)
        policy.succeeded(0.0, sent=0.0)
    policy.refused(1.0, sent=1.0, asked=59.0, chance=0.0)
    rate = policy.rate
    del policy
    gc.collect()
    return rate


def saved(rate: float, window: float = 60.0, *, refused: bool = True) -> None:
    Memory("key").keep(Learned(rate, window, refused))


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
        assert policy.rate == policy.floor > 0


def test_a_program_that_learned_nothing_leaves_the_file_alone(cache: Path) -> None:
    saved(2.0)
    before = path_of(Memory("key")).read_text()
    AimdLimiter(warm_start="key")
    gc.collect()
    assert path_of(Memory("key")).read_text() == before


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
                    policy.succeeded(now, sent=now)
        policy._learned.save()


def test_while_a_request_probes_after_an_absurd_wait_the_earlier_rate_is_kept() -> None:
    policy = AimdLimiter(100, 60, warm_start="key")
    for _ in range(30):
        policy.take(0.0)
        policy.succeeded(0.0, sent=0.0)
    policy.refused(1.0, sent=1.0, asked=86_400.0, chance=0.0)
    assert policy.rate == policy.floor
    assert policy._learned.learned is not None
    assert policy._learned.learned.rate > 2 * policy.floor


def test_a_rate_older_than_a_day_or_from_the_future_is_not_believed() -> None:
    clock = FakeClock()
    memory = Memory("key", clock)
    memory.keep(RATE)
    clock.advance(86_000.0)
    assert memory.recall() == RATE._replace(age=86_000.0)
    clock.advance(1_000.0)
    assert memory.recall() is None
    Memory("key").keep(RATE)
    assert memory.recall() is None, "the fake clock is behind"


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
    memory = Memory("key", clock)
    memory.keep(RATE)
    start = clock.utcnow().timestamp()
    path_of(memory).write_bytes(content.replace(b'"saved": 0.0', f'"saved": {start}'.encode()))
    assert memory.recall() is None
    path_of(memory).write_bytes(text(saved=start))
    assert memory.recall() == RATE


def test_anything_but_a_regular_file_is_not_read_and_a_link_is_replaced_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = path_of(Memory("key"))
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert Memory("key").recall() is None, "and it does not wait for a writer"
    path.unlink()
    path.mkdir()
    memory = Memory("key")
    assert memory.recall() is None
    memory.keep(RATE)
    assert [*path.parent.iterdir()] == [path], "no temporary file stays"
    path.rmdir()
    other = tmp_path / "other"
    other.write_bytes(text())
    path.symlink_to(other)
    assert Memory("key").recall() is None
    memory.keep(RATE)
    assert not path.is_symlink()
    assert other.read_bytes() == text()
    assert "not a regular file" in caplog.text


@pytest.mark.parametrize("name", ["../../escape", "a/b", "x" * 1000, "\udcff", "nul\0", ".", "é" * 300])
def test_every_name_has_its_own_file_in_the_directory(cache: Path, name: str) -> None:
    Memory(name).keep(RATE)
    Memory(name + "2").keep(RATE._replace(rate=3.0))
    assert [path.parent for path in files(cache)] == [cache / "stkai" / "adaptive"] * 2
    found = Memory(name).recall()
    assert found is not None
    assert found.rate == 2.0


def test_names_that_differ_only_in_case_have_file_names_that_differ_in_more() -> None:
    lower, upper = path_of(Memory("key")).name.lower(), path_of(Memory("KEY")).name.lower()
    assert lower != upper


def test_a_directory_that_cannot_be_written_is_a_warning_and_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    memory = Memory("key")
    for _ in range(3):
        memory.keep(RATE)
        assert memory.recall() is None
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
    assert path_of(Memory("key")).parent == tmp_path / ".cache" / "stkai" / "adaptive"


def saving_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stkai-warm-start"]


def finish_saving() -> None:
    for thread in saving_threads():
        thread.join(10)


def test_news_is_saved_in_a_thread_and_at_most_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[str, Learned]] = []

    class Noting(Memory):
        def keep(self, learned: Learned) -> None:
            kept.append((threading.current_thread().name, learned))

    keeper = Keeper(Noting("key"))
    for now in range(200):
        if now not in {0, 150}:
            keeper.note(float(now), 60.0, refused=True)
        keeper.save_news(float(now))
        finish_saving()
    assert [(name, learned.rate) for name, learned in kept] == [
        ("stkai-warm-start", rate) for rate in (1.0, 61.0, 121.0, 181.0)
    ]


def test_nothing_is_saved_again_while_there_is_no_news() -> None:
    keeper = Keeper(Memory("key"))
    keeper.note(2.0, 60.0, refused=True)
    keeper.save_news(0.0)
    finish_saving()
    path_of(Memory("key")).unlink()
    keeper.save_news(1000.0)
    finish_saving()
    assert Memory("key").recall() is None


def test_a_program_that_can_start_no_thread_saves_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    keeper = Keeper(Memory("key"))
    keeper.note(2.0, 60.0, refused=True)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    keeper.save_news(0.0)
    assert Memory("key").recall() is None
    keeper.save()
    assert Memory("key").recall() is not None


def test_the_first_refusal_is_saved_while_the_program_runs() -> None:
    clock = FakeClock()
    policy, turn = AimdLimiter(warm_start="key"), Turn()
    assert policy.ask(turn, 0.0) == 0.0
    response = httpx.Response(429, headers={"Retry-After": "30"})
    policy.learn(turn, Answer(0.0, 1.0, response, None, clock.utcnow, 0.0))
    finish_saving()
    found = Memory("key").recall()
    assert found is not None
    assert found.rate == policy.rate
    assert found.window == policy.window
    assert found.refused


@pytest.mark.parametrize("name", ["", "  ", 7, True])
def test_an_invalid_name_is_an_error(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="warm_start must be the name of a quota"):
        AimdLimiter(warm_start=name)


@pytest.mark.parametrize("factor", ["penalty_factor", "recovery_factor"])
def test_plain_aimd_has_nothing_to_start_from(factor: str) -> None:
    options: Any = {factor: 0.5}
    with pytest.raises(ConfigurationError, match="plain AIMD starts at the whole quota"):
        AimdLimiter(100, 60, warm_start="key", **options)


def test_a_share_is_kept_by_its_store_under_its_own_name(cache: Path) -> None:
    with pytest.raises(ConfigurationError, match="must be the name of the share, 'team'"):
        AimdLimiter(100, 60, warm_start="key", share="team", store="file:///nowhere")
