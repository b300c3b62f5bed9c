"""The command line: what it prints, and how it ends."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text
from typer.testing import CliRunner

import stkai
from stkai.__main__ import main
from stkai._cli import app, demo
from stkai._cli.demo import STRATEGIES, Batch, StrategyRun
from stkai._cli.explain import _settings
from stkai.transports._limits.pace.quota import LearnedRate
from stkai.transports._limits.saved_rate import SavedRate

from ..support.command_line import invoke
from ..support.forked import forkserver


def run(*arguments: str, columns: int = 120) -> Any:
    return invoke(arguments, env={"COLUMNS": str(columns), "NO_COLOR": "1"})


@pytest.mark.real_time
def test_the_demo_runs_every_strategy_and_accounts_for_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.get_context", forkserver)
    arguments = ("--requests", "2", "--processes", "2", "--threads", "2", "--quota", "100")
    result = run("demo", *arguments, columns=80)
    assert result.exit_code == 0, result.output
    assert "Every call is accounted for" in result.output
    rows = [line.split() for line in result.output.splitlines() if line.startswith(STRATEGIES)]
    assert [" ".join(row)[: len(name)] for row, name in zip(rows, STRATEGIES, strict=True)] == [*STRATEGIES]
    assert [row[-6:-2] for row in rows] == [["4", "4", "0", "0"]] * 5
    assert re.search(r"^found [\d.,]+ of 100/s", result.output, re.MULTILINE)


@pytest.mark.parametrize(("option", "value"), [("--window", "inf"), ("--quota", "9" * 30)])
def test_the_demo_refuses_numbers_that_no_limiter_takes(option: str, value: str) -> None:
    result = run("demo", option, value)
    assert (result.exit_code, option in result.output) == (2, True)


@pytest.mark.real_time
def test_an_interrupted_demo_ends_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.get_context", forkserver)
    started: list[Any] = []

    def interrupt(_: object) -> None:
        started.extend(multiprocessing.active_children())
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "wait", interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Batch(requests=500, processes=2, threads=1, quota=10_000, window=1.0).run("no limiter")
    assert [process.exitcode for process in started] == [-signal.SIGKILL] * 2
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.real_time
def test_the_demo_starts_each_of_its_processes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.get_context", forkserver)
    start, started = BaseProcess.start, list[Any]()

    def counted(process: Any) -> None:
        started.append(process)
        start(process)

    monkeypatch.setattr(BaseProcess, "start", counted)
    assert Batch(requests=2, processes=2, threads=1, quota=100, window=1.0).run("no limiter").lost == 0
    assert len(started) == 2


def a_run(name: str) -> StrategyRun:
    return StrategyRun(name, 12, accepted=[0.1] * 10, refused=[0.2, 5.0], seconds=[0.1] * 10)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_demo_fits_the_screen_with_its_plots(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(Batch, "run", lambda self, strategy: a_run(strategy))
    lines = run("demo", "--quota", "10", columns=columns).output.splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) <= 23
    assert not any("…" in line for line in lines)
    assert "".join(lines).count("▁") >= 5
    assert any(line.startswith("given nothing") for line in lines)


@pytest.mark.parametrize("columns", [66, 72, 80])
def test_the_plots_of_the_demo_give_way_to_its_numbers(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    crowd = StrategyRun("shared", 4000, accepted=[0.1] * 1200, refused=[], seconds=[12.3] * 1200, failed=2800)
    monkeypatch.setattr(Batch, "run", lambda self, strategy: replace(crowd, name=strategy))
    output = run("demo", columns=columns).output
    assert output.count("4,000  1,200    0   2,800   12.3   12.3") == len(STRATEGIES)
    assert max(map(len, output.splitlines())) <= columns


def test_the_demo_draws_its_plots_in_ascii_where_the_terminal_takes_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Batch, "run", lambda self, strategy: a_run(strategy))
    result = CliRunner(charset="ascii").invoke(app, ["demo", "--quota", "10"])
    assert result.exit_code == 0, result.output
    assert "@" in result.output


@pytest.mark.parametrize(
    ("found", "quota", "text"), [(0.0123456, 100, "0.0123 of 1.67"), (1234.5, 100_000, "1,234 of 1,667")]
)
def test_the_demo_says_what_was_found_without_numbers(
    monkeypatch: pytest.MonkeyPatch, found: float, quota: int, text: str
) -> None:
    monkeypatch.setattr(Batch, "run", lambda self, strategy: replace(a_run(strategy), found=found))
    lines = run("demo", "--quota", str(quota), "--window", "60", columns=80).output.splitlines()
    assert any(line.startswith(f"found {text}/s ") for line in lines)


def test_the_demo_exits_non_zero_if_a_request_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(self: Batch, strategy: str) -> StrategyRun:
        return StrategyRun(strategy, 3, accepted=[0.0], refused=[], seconds=[0.1], failed=1, lost=1)

    monkeypatch.setattr(Batch, "run", lossy)
    result = run("demo", "--processes", "1", "--requests", "3")
    assert result.exit_code == 1
    assert f"{len(STRATEGIES)} calls were lost" in result.output


def die(*_: object) -> None:
    os._exit(1)


@pytest.mark.real_time
def test_the_demo_counts_the_calls_of_a_dead_process_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_work", die)
    assert Batch(2, 1, 1, 100, 1.0).run("no limiter").lost == 2


def test_quantiles_of_no_or_one_value_are_defined() -> None:
    def quantile(seconds: list[float], percent: int) -> float:
        return StrategyRun("one", 3, accepted=[], refused=[], seconds=seconds).quantile(percent)

    assert quantile([], 50) == 0.0
    assert quantile([2.0], 95) == 2.0
    assert quantile([1.0, 2.0, 3.0], 50) == 2.0


def test_explain_shows_each_value_with_its_source_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STKAI_AUTH_CLIENT_ID", "me")
    monkeypatch.setenv("STKAI_AUTH_CLIENT_SECRET", "hunter2")
    monkeypatch.setenv("STKAI_RATE_LIMIT_ENABLED", "true")
    monkeypatch.setenv("STKAI_RATE_LIMIT_STRATEGY", "adaptive")
    result = run("explain")
    assert result.exit_code == 0
    assert "hunter2" not in result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["STKAI_AUTH_CLIENT_ID", "me", "environment"] in lines
    assert ["STKAI_RETRY_MAX_RETRIES", "3", "default"] in lines
    assert "Authentication: credentials" in result.output
    assert "Stack: retry > auth > adaptive > wire" in result.output


@pytest.mark.parametrize(
    ("variable", "value", "searches"),
    [
        ("STRATEGY", "adaptive", True),
        ("MAX_REQUESTS", "7", False),
        ("MIN_RATE_FLOOR", "0.2", False),
        ("MAX_COST", "1000", True),
    ],
)
def test_explain_says_when_the_adaptive_limiter_has_to_find_the_quota(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, searches: bool
) -> None:
    monkeypatch.setenv("STKAI_RATE_LIMIT_ENABLED", "true")
    monkeypatch.setenv("STKAI_RATE_LIMIT_STRATEGY", "adaptive")
    monkeypatch.setenv(f"STKAI_RATE_LIMIT_{variable}", value)
    assert ("the adaptive limiter finds it" in run("explain").output) is searches


def test_explain_shows_what_an_earlier_program_has_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in {"ENABLED": "true", "STRATEGY": "adaptive", "WARM_START": "key"}.items():
        monkeypatch.setenv(f"STKAI_RATE_LIMIT_{name}", value)
    lines = run("explain").output.splitlines()
    assert ["STKAI_RATE_LIMIT_WARM_START", "key", "environment"] in [line.split() for line in lines]
    assert "Warm start: nothing from the last day in" in " ".join(lines)
    SavedRate("key").write(LearnedRate(1.5, 60.0), datetime.now(UTC))
    output = run("explain").output
    assert re.search(r"Warm start: 1\.5 requests per second, window 60 s, saved 0:\d\d ago", output)
    assert len(list(tmp_path.rglob("*.json"))) == 1
    SavedRate("key").write(LearnedRate(1.5, 60.0, finding="in flight: 8"), datetime.now(UTC))
    output = run("explain").output
    assert "Warm start: 1.5 requests per second, in flight: 8, window 60 s" in output
    SavedRate("key").write(LearnedRate(1.5, 60.0, refused=False), datetime.now(UTC))
    assert "per second, without a refusal, window" in run("explain").output
    monkeypatch.setenv("STKAI_RATE_LIMIT_STRATEGY", "token_bucket")
    stkai.STKAI.reset()
    result = run("explain")
    assert result.exit_code == 2
    assert "STKAI_RATE_LIMIT_WARM_START" in result.stderr


def test_explain_says_where_a_group_keeps_its_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {"ENABLED": "true", "STRATEGY": "adaptive", "SHARE": "team", "WARM_START": "team"}
    for name, value in {**values, "STORE": f"file://{tmp_path}/store"}.items():
        monkeypatch.setenv(f"STKAI_RATE_LIMIT_{name}", value)
    output = run("explain").output
    assert "Warm start: the store of the shared quota keeps its rate for a day" in output
    assert "finds it" not in output


def test_explain_says_that_nothing_can_be_kept_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    for name, value in {"ENABLED": "true", "STRATEGY": "adaptive", "WARM_START": "key"}.items():
        monkeypatch.setenv(f"STKAI_RATE_LIMIT_{name}", value)
    assert "set XDG_CACHE_HOME" in run("explain").output


def test_explain_without_authentication_says_what_would_help() -> None:
    result = run("explain")
    assert result.exit_code == 0
    assert "Authentication: none" in result.output
    assert "STKAI_AUTH_CLIENT_SECRET in the environment" in result.output
    assert "Stack: retry > wire" in result.output


def test_explain_shows_that_a_token_signs_and_not_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STKAI_AUTH_TOKEN", "hunter2")
    result = run("explain")
    assert result.exit_code == 0
    assert "Authentication: token" in result.output
    assert "hunter2" not in result.output + result.stderr


@pytest.mark.parametrize(
    ("name", "value", "wire"),
    [
        ("STKAI_HTTP_TRUST_ENV", "true", "httpx, with the proxies of the environment"),
        ("STKAI_HTTP_TRUST_ENV", "false", "httpx"),
        ("STKAI_HTTP_PROXY", "http://proxy", "httpx"),
    ],
)
def test_explain_mentions_the_proxies_of_the_environment_only_if_they_are_used(
    name: str, value: str, wire: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert f"the wire is {wire})" in run("explain").output


@pytest.mark.parametrize("value", ["team[/prod]", "[bold]x[/]", "[link=https://x]"])
def test_explain_shows_values_as_they_are(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("STKAI_AUTH_CLIENT_ID", value)
    monkeypatch.setenv("STKAI_AUTH_CLIENT_SECRET", "hunter2")
    monkeypatch.setenv("STKAI_AUTH_ORIGINS", "https://[fe80::1]:8443")
    result = run("explain")
    assert result.exit_code == 0
    words = result.output.split()
    assert value in words
    assert "https://[fe80::1]:8443" in words


@pytest.mark.parametrize(("name", "value"), [("AUTH_ORIGINS", "[/prod]"), ("RATE_LIMIT_STRATEGY", "leaky")])
def test_explain_of_an_invalid_configuration_exits_with_2_and_shows_the_value_as_it_is(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"STKAI_{name}", value)
    result = run("explain")
    assert result.exit_code == 2
    assert f"STKAI_{name} (environment) is '{value}'" in result.stderr


@pytest.mark.parametrize("columns", [40, 80, 1000])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_explain_leaves_it_to_the_terminal_to_fold_long_lines(
    monkeypatch: pytest.MonkeyPatch, columns: int, is_terminal: bool
) -> None:
    monkeypatch.setenv("STKAI_HTTP_PROXY", f"http://{'x' * 60}:3128")
    monkeypatch.setenv("STKAI_RATE_LIMITS_ENABLED", "true")
    monkeypatch.setattr("rich.console.Console.is_terminal", is_terminal)
    result = run("explain", columns=columns)
    assert result.exit_code == 0
    lines = Text.from_ansi(result.output).plain.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith("STKAI_")}
    assert rows["STKAI_HTTP_PROXY"].split() == ["STKAI_HTTP_PROXY", f"http://{'x' * 60}:3128", "environment"]
    assert rows["STKAI_RATE_LIMITS_ENABLED"].endswith("did you mean STKAI_RATE_LIMIT_ENABLED?")
    if is_terminal and columns == 80:
        long = {"STKAI_AUTH_TOKEN_URL", "STKAI_HTTP_PROXY", "STKAI_RATE_LIMITS_ENABLED"}
        assert {name for name, line in rows.items() if len(line) > columns} == long
    elif not is_terminal:
        assert len({line.rindex("default") for line in rows.values() if line.endswith("  default")}) == 1


def test_explain_colours_ignored_variables_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STKAI_RATE_LIMITS_ENABLED", "true")
    monkeypatch.setenv("STKAI_RATE_LIMIT_SHARE", "ignored")
    table = _settings(1000)
    yellow = [table.plain[span.start : span.end].split()[0] for span in table.spans if span.style == "yellow"]
    assert yellow == ["STKAI_RATE_LIMITS_ENABLED"]


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("", "[OPTIONS] COMMAND [ARGS]..."),
        ("batch", "batch [OPTIONS] INPUT"),
        ("batch merge", "batch merge [OPTIONS] OUT..."),
        ("quota", "quota [OPTIONS] NAME"),
        ("demo", "demo [OPTIONS]"),
        ("explain", "explain [OPTIONS]"),
    ],
)
def test_help_shows_the_usage_as_it_is_typed(command: str, usage: str) -> None:
    for name in ("-h", "--help"):
        result = run(*command.split(), name)
        assert result.exit_code == 0
        # Some versions of click write arguments in braces.
        shown = re.sub(r"[{}]", "", result.output.splitlines()[0])
        assert shown.endswith(f" {usage}")
    wrong = run(*command.split(), "--wrong")
    assert wrong.exit_code == 2
    assert "' for help" in wrong.stderr


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version").output.split() == ["stkai", stkai.__version__]
    assert stkai.__version__ == version("stkai")


def test_explain_finds_what_no_client_can_be_built_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    monkeypatch.setenv("STKAI_HTTP_VERIFY", str(tmp_path / "ca.pem"))
    result = run("explain")
    assert (result.exit_code, "STKAI_HTTP_VERIFY" in result.stderr) == (2, True)


def test_the_command_runs_as_a_module_and_escapes_what_the_encoding_of_the_output_lacks() -> None:
    settings = {"STKAI_AUTH_CLIENT_ID": "équipe", "STKAI_AUTH_CLIENT_SECRET": "x"}
    env = {**os.environ, "PYTHONIOENCODING": "ascii", **settings}
    command = [sys.executable, "-m", "stkai", "explain"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=env)
    assert r"\xe9quipe" in result.stdout


def test_an_output_that_cannot_be_written_is_an_error_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stkai._cli.app", fail)
    with pytest.raises(SystemExit, match="stkai: No space left on device"):
        main()


def test_without_its_extra_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "stkai._cli")
    with pytest.raises(SystemExit, match=r'typer is missing.*pip install "stkai\[cli\]"'):
        main()


@pytest.mark.parametrize("swallowed", [(), (KeyboardInterrupt,)], ids=["raised", "swallowed"])
def test_an_interrupt_while_modules_are_imported_ends_the_command(swallowed: tuple[type, ...]) -> None:
    # A module may swallow what a signal handler raises; pydantic does, while it makes a model.
    program = f"""if True:
        import contextlib, runpy, signal, sys
        class Interrupting:
            def find_spec(name, *_):
                if name == "typer":
                    with contextlib.suppress({", ".join(each.__name__ for each in swallowed)}):
                        signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.meta_path.insert(0, Interrupting)
        runpy.run_module("stkai", run_name="__main__")
    """
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (-signal.SIGINT, b"")


def test_an_interrupt_before_a_command_begins_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stkai._cli.app", interrupt)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130


def test_a_traceback_shows_no_values_of_variables() -> None:
    assert not app.pretty_exceptions_show_locals


def test_the_command_is_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr("stkai._cli.app", lambda: called.append(True))
    main()
    assert called == [True]
