"""`stkai quota`, and what `stkai explain` says about a shared quota."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stkai import STKAI
from stkai._cli.quota import as_table
from stkai._urls import file_name
from stkai.stores import Ask, FileStore, Refusal

from ..support.command_line import invoke
from ..support.redis_servers import free_port


def run(*arguments: str) -> Any:
    return invoke(arguments, env={"COLUMNS": "120", "NO_COLOR": "1"})


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    store = FileStore(tmp_path / "store")
    ask = Ask(share="team-key", rate=50.0, burst=1.0, started=1.0, member="a", want=3, waiting=4)
    epoch = store.lease(ask).epoch
    store.lease(ask._replace(member="b", refused=Refusal(epoch, 30.0)))
    return store


@pytest.fixture
def costly(tmp_path: Path) -> FileStore:
    """A store with a quota of ten requests in 2 s and of 1000 units, which one request of 1500 has used up."""
    store = FileStore(tmp_path / "store")
    quota: dict[str, Any] = {
        "rate": 5.0,
        "burst": 10.0,
        "window": 2.0,
        "max_cost": 1000.0,
        "cost_rate": 500.0,
    }
    lease = store.lease(Ask(share="team-key", member="a", want=1, costs=(1500.0,), **quota))
    store.lease(Ask(share="team-key", member="a", lease_id=lease.id, used=1, units_used=1500.0, **quota))
    return store


def test_quota_shows_one_snapshot_without_a_terminal(store: FileStore) -> None:
    result = run("quota", "team-key", "--store", f"file://{store.path}")
    assert result.exit_code == 0, result.output
    rows = {line.split("  ")[0].strip(): line for line in result.output.splitlines() if line.strip()}
    assert "team-key" in result.output
    assert rows["members"].split()[-1] == "2"
    assert "50 requests/s" in rows["rate"]
    assert "0 requests/s (average of about 10 s)" in rows["in use"]
    assert "8 requests waiting; a new one would wait for " in rows["queue"]
    assert 10 < float(rows["pause"].split()[-2]) <= 30
    assert "s ago" in rows["last 429"]


@pytest.mark.parametrize(
    ("waiting", "queue", "words"),
    [
        (0, 0.0, "0 requests waiting; a new one would not have to wait"),
        (1, 0.5, "1 request waiting; a new one would wait for 0.5 s in an idle process"),
        (1200, 60.0, "1,200 requests waiting; a new one would wait for 60 s in an idle process"),
    ],
)
def test_the_queue_is_put_into_words(store: FileStore, waiting: int, queue: float, words: str) -> None:
    seen = store.look("team-key")
    assert seen is not None
    shown = as_table("team-key", seen._replace(waiting=waiting, queue=queue), store)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(shown)
    assert words in captured.get()


def test_quota_prints_json_for_scripts_and_is_not_a_member(store: FileStore) -> None:
    for _ in range(2):
        result = run("quota", "team-key", "--store", f"file://{store.path}", "--json")
        assert json.loads(result.output)["members"] == 2
    assert result.exit_code == 0


def test_an_output_that_cannot_be_written_is_not_blamed_on_the_store(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("typer.echo", fail)
    result = run("quota", "team-key", "--store", f"file://{store.path}", "--json")
    assert isinstance(result.exception, OSError)
    assert "cannot be reached" not in result.stderr


def test_quota_shows_units_and_how_long_a_new_request_waits(costly: FileStore) -> None:
    url = f"file://{costly.path}"
    rows = {
        line.split("  ")[0].strip(): line
        for line in run("quota", "team-key", "--store", url).output.splitlines()
    }
    assert "at most 10 in 2 s" in rows["rate"]
    assert "of 1,000 left; 500 more per second" in rows["units"]
    seen = json.loads(run("quota", "team-key", "--store", url, "--json").output)
    assert (seen["quota"], seen["window"], seen["max_cost"], seen["burst"]) == (5.0, 2.0, 1000.0, 10.0)
    assert -500 <= seen["units"] < 0
    assert 0.5 < seen["queue"] <= 1.0
    assert seen["books"] == {"leased": 1, "used": 1, "returned": 0, "expired": 0, "held": 0}


def test_a_reset_of_a_quota_that_was_never_used_says_so(store: FileStore) -> None:
    result = run("quota", "team-kex", "--store", f"file://{store.path}", "--reset")
    assert result.exit_code == 0
    assert f"No process has used the quota 'team-kex' in {store!r} recently; --store names" in result.output
    assert "is reset" not in result.output


def test_explain_says_that_older_members_do_not_share(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STKAI_RATE_LIMIT_ENABLED", "true")
    monkeypatch.setenv("STKAI_RATE_LIMIT_SHARE", "team-key")
    monkeypatch.setenv("STKAI_RATE_LIMIT_STORE", f"file://{store.path}")
    assert "stkai 2" not in run("explain").output
    (store.path / file_name("team-key", ".share")).touch()
    assert "members of stkai 2 also use it" in " ".join(run("explain").output.split())


def test_the_store_of_the_settings_is_the_default(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "team.env"
    file.write_text(f"STKAI_RATE_LIMIT_STORE=file://{store.path}\nSTKAI_RATE_LIMIT_WARM_START=another\n")
    monkeypatch.setenv("STKAI_ENV_FILE", str(file))
    assert "50 requests/s" in run("quota", "team-key", "--once").output
    monkeypatch.setenv("STKAI_RATE_LIMIT_STORE", "none")
    assert run("quota", "team-key", "--once", "--store", f"file://{store.path}").exit_code == 0
    monkeypatch.setenv("STKAI_RATE_LIMIT_STORE", "ftp://host")
    refused = run("quota", "team-key", "--once")
    assert (refused.exit_code, "STKAI_RATE_LIMIT_STORE" in refused.stderr) == (2, True)


def test_reset_forgets_the_quota(store: FileStore) -> None:
    url = f"file://{store.path}"
    assert run("quota", "team-key", "--store", url, "--reset").exit_code == 0
    result = run("quota", "team-key", "--store", url, "--once")
    assert result.exit_code == 0
    assert result.output.startswith("No process")  # The path that follows may contain any digits.
    assert run("quota", "never-used", "--store", url, "--reset").exit_code == 0


def test_a_reset_tells_scripts_in_json_whether_there_was_a_quota(store: FileStore) -> None:
    for known in (True, False):
        result = run("quota", "team-key", "--store", f"file://{store.path}", "--reset", "--json")
        assert json.loads(result.output) == {"share": "team-key", "reset": known}


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


def test_explain_counts_the_program_beside_the_members_of_a_share(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert f"127.0.0.1:{port}'), which cannot be reached" in words
    assert "hunter2" not in words
