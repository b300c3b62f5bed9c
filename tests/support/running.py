"""How the tests are run: by several processes, traced where that tells something, and without needless work."""

import gc
import os
import pkgutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

import stkai

NOT_IMPORTED = {"stkai.__main__", "stkai.testing.pytest"}
"""Modules that only other processes import, so that they do not count as covered."""

TESTS = Path(__file__).parents[1]

TELLING = 0.1
"""Seconds: a set-up that takes as long is reported, for `--durations`."""


def _coverage(config: pytest.Config) -> Any:
    """What measures coverage in this process: the only one, or one of those that xdist starts to run the tests."""
    is_controller = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    return None if is_controller else getattr(config.pluginmanager.get_plugin("_cov"), "cov_controller", None)


def pytest_configure() -> None:
    """Let tests interrupt themselves and what they start, also in a job that a shell starts in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """End the tracing that pytest-cov begins in xdist's controller, and in its workers as if they were this."""
    plugin: Any = session.config.pluginmanager.get_plugin("_cov")
    is_worker = hasattr(session.config, "workerinput")
    if plugin is not None and (is_worker or getattr(session.config.option, "numprocesses", None)):
        plugin.cov_controller.cov.stop()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Trace imports of the library once, and from then on only the tests: pytest, too, would run half as fast."""
    if coverage := _coverage(session.config):
        if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":
            for module in pkgutil.walk_packages(stkai.__path__, "stkai."):
                if module.name not in NOT_IMPORTED:
                    import_module(module.name)
        coverage.cov.stop()
    if worker := getattr(session.config, "workerinput", None):
        _compile_a_part(int(worker["workerid"].removeprefix("gw")), worker["workercount"])
    return (yield)


def _compile_a_part(number: int, count: int) -> None:
    """Import every nth file of tests: pytest rewrites and compiles it then, and the other workers need not."""
    for path in sorted(TESTS.rglob("test_*.py"))[number::count]:
        if path.parent.name != "sdks":
            with suppress(Exception, pytest.skip.Exception):  # To be reported when it is collected.
                import_module(".".join(path.relative_to(TESTS.parent).with_suffix("").parts))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Report a test once, and not its set-up and its end as well: xdist would send these to its controller."""
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed or report.duration > TELLING:
            hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Trace a test, unless it is marked `no_cover`."""
    coverage = _coverage(item.config)
    if coverage and not item.get_closest_marker("no_cover"):
        coverage.cov.start()
    try:
        return (yield)
    finally:
        if coverage:  # Also after an untraced test: pytest-cov has begun again.
            coverage.cov.stop()


gc.disable()
"""Nothing of what is collected here is garbage, and to look for it takes a sixth of the time."""


def pytest_collection_finish() -> None:
    """Spare the garbage collector the tests themselves: several collect, and each would look at all of them."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Spare it what tests of a file have imported and kept as well."""
    try:
        return (yield)
    finally:
        if nextitem is not None and nextitem.path != item.path:
            gc.collect()
            gc.freeze()
