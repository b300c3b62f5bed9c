"""`stkai quota`, and what `stkai explain` says about a shared quota."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stkai import STKAI
from stkai._cli.main import build_app
from stkai.stores import Ask, FileStore, Refusal

from ..support.redis_servers import free_port


def run(*arguments: str) -> Any:
    return CliRunner().invoke(build_app(), arguments, env={"COLUMNS": "120", "NO_COLOR": "1"})


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    store = FileStore(tmp_path / "store")
    ask = Ask(share="team-key", rate=50.0, burst=1.0, started=1.0, member="a", want=3, waiting=4)
    epoch = store.lease(ask).epoch
    store.lease(ask._replace(member="b", refused=Refusal(epoch, 30.0)))
    return store


def test_quota_shows_one_snapshot_without_a_terminal(store: FileStore) -> None:
    result = run("quota", "team-key", "--store", f"file://{store.path}")
    assert result.exit_code == 0, result.output
    rows = {line.split("  ")[0].strip(): line for line in result.output.splitlines() if line.strip()}
    assert "team-key" in result.output
    assert rows["members"].split()[-1] == "2"
    assert "50 requests/s" in rows["rate"]
    assert "8 requests" in rows["queue"]
    assert "29" in rows["pause"] or "30" in rows["pause"]
    assert "0 s ago" in rows["last 429"]


def test_quota_prints_json_for_scripts_and_is_not_a_member(store: FileStore) -> None:
    for _ in range(2):
        result = run("quota", "team-key", "--store", f"file://{store.path}", "--json")
        assert json.loads(result.output)["members"] == 2
    assert result.exit_code == 0


def test_reset_forgets_the_quota(store: FileStore) -> None:
    url = f"file://{store.path}"
    assert run("quota", "team-key", "--store", url, "--reset").exit_code == 0
    result = run("quota", "team-key", "--store", url, "--once")
    assert result.exit_code == 0
    assert "50" not in result.output
    assert run("quota", "never-used", "--store", url, "--reset").exit_code == 0


def test_a_store_that_cannot_be_reached_is_named_without_its_password() -> None:
    result = run("quota", "team-key", "--store", f"redis://me:hunter2@127.0.0.1:{free_port()}")
    assert result.exit_code == 1
    assert "127.0.0.1" in result.stderr
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize("arguments", [("  ",), ("team", "--store", "ftp://host"), ("team", "--store", "x")])
def test_bad_arguments_say_what_is_allowed(arguments: tuple[str, ...]) -> None:
    result = run("quota", *arguments)
    assert result.exit_code == 2
    assert "share" in result.stderr or "redis://" in result.stderr


def test_explain_counts_the_members_of_a_share(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STKAI_RATE_LIMIT_ENABLED", "true")
    monkeypatch.setenv("STKAI_RATE_LIMIT_SHARE", "team-key")
    monkeypatch.setenv("STKAI_RATE_LIMIT_STORE", f"file://{store.path}")
    result = run("explain")
    assert result.exit_code == 0
    assert "members seen: 3" in " ".join(result.output.split())
    STKAI.reset()
    monkeypatch.setenv("STKAI_RATE_LIMIT_SHARE", "another")
    assert "members seen: 1" in " ".join(run("explain").output.split())


def test_explain_shows_a_store_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("STKAI_RATE_LIMIT_ENABLED", "true")
    monkeypatch.setenv("STKAI_RATE_LIMIT_SHARE", "team-key")
    monkeypatch.setenv("STKAI_RATE_LIMIT_STORE", f"redis://me:hunter2@127.0.0.1:{port}")
    result = run("explain")
    assert result.exit_code == 0
    words = " ".join(result.output.split())
    assert "team-key" in words
    assert f"127.0.0.1:{port}, which cannot be reached" in words
    assert "hunter2" not in words
