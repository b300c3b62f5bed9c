"""A limiter that starts where the last one ended."""

import gc
from pathlib import Path

import pytest

from stkai import AimdLimiter, ConfigurationError
from stkai.testing import FakeClock
from stkai.transports._adaptive.warm import Learned, Memory


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def files(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def run_a_program(warm_start: str | None = None) -> float:
    """Let a limiter be refused once, and end; returns the rate that it ended with."""
    policy = AimdLimiter(warm_start=warm_start)
    for _ in range(30):
        policy.take(0.0)
        policy.succeeded(0.0, sent=0.0)
    policy.refused(1.0, sent=1.0, asked=59.0, chance=0.0)
    rate = policy.rate
    del policy
    gc.collect()
    return rate


def test_nothing_is_kept_unless_asked_for(cache: Path) -> None:
    run_a_program()
    assert files(cache) == []


def test_the_next_program_starts_near_the_rate_of_the_last(cache: Path) -> None:
    rate = run_a_program(warm_start="team key")
    assert len(files(cache)) == 1
    assert files(cache)[0].stat().st_mode & 0o077 == 0
    policy = AimdLimiter(warm_start="team key")
    assert 0.7 * rate <= policy.rate <= rate
    assert policy.window == 59.0
    assert AimdLimiter(warm_start="another").rate != policy.rate


def test_the_numbers_stay_the_ceiling() -> None:
    Memory("key").keep(Learned(50.0, 60.0))
    assert AimdLimiter(100, 60, warm_start="key").rate == pytest.approx(100 / 60)


def test_a_program_that_learned_nothing_leaves_the_file_alone(cache: Path) -> None:
    Memory("key").keep(Learned())
    assert files(cache) == []


def test_what_is_older_than_a_day_or_from_the_future_is_not_believed() -> None:
    clock = FakeClock()
    memory = Memory("key", clock)
    memory.keep(Learned(1.0, 60.0))
    clock.advance(86_000.0)
    assert memory.recall() == Learned(1.0, 60.0)
    clock.advance(1_000.0)
    assert memory.recall() is None
    assert Memory("key", FakeClock(start=0.0)).recall() is not None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"rate": -1, "window": 60, "saved": 0}', '{"rate": "x"}']
)
def test_a_file_that_makes_no_sense_is_as_good_as_none(text: str) -> None:
    memory = Memory("key")
    memory.keep(Learned(1.0, 60.0))
    memory.path.write_text(text)
    assert memory.recall() is None


def test_no_name_leads_out_of_the_directory(cache: Path) -> None:
    memory = Memory("../../escape")
    memory.keep(Learned(1.0, 60.0))
    assert memory.path.parent == cache / "stkai" / "adaptive"


def test_a_directory_that_cannot_be_written_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    Memory("key").keep(Learned(1.0, 60.0))
    assert Memory("key").recall() is None


@pytest.mark.parametrize("name", ["", "  ", 7])
def test_an_invalid_name_is_an_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match="warm_start"):
        AimdLimiter(warm_start=name)
