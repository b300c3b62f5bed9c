"""The benchmark of other libraries, without them."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks import _peer, peers


def test_the_most_in_a_second_is_found_in_any_second() -> None:
    assert peers.most_in([0.0, 0.6, 0.7, 0.8, 1.5, 1.6, 1.65], 1.0) == 5
    assert peers.most_in([], 1.0) == 0


def test_a_library_that_cannot_be_installed_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: SimpleNamespace(returncode=1))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert list(_peer.available(["stkai", "aiolimiter"])) == ["stkai"]
    assert "aiolimiter==1.3.0 could not be installed: left out" in capsys.readouterr().out


def test_a_library_whose_python_is_missing_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert _peer.available(["headgate"]) == {}
    assert "headgate needs python3.14: left out" in capsys.readouterr().out


def test_a_kill_in_the_middle_of_a_line_spoils_no_other_time(tmp_path: Path) -> None:
    file = tmp_path / "grants"
    assert peers._times(file) == []
    file.write_text("2.5\n1.5\n17")
    assert peers._times(file) == [1.5, 2.5]
