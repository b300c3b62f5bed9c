"""The benchmark of many waiters."""

import pytest
from benchmarks import contention

from stkai.transports import Turn


def test_the_adaptive_limiter_has_used_up_its_burst_before_the_measurement() -> None:
    assert contention._aimd().ask(Turn(), 0.0) != 0


def test_packages_that_are_not_installed_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(contention._NEEDS, "aiolimiter", "no_such_package")
    assert list(contention._available({"aiolimiter": 1, "stkai": 2})) == ["stkai"]
    assert "no_such_package is not installed: left out" in capsys.readouterr().out
