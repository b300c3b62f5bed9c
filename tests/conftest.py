"""Shared by every test: a clean environment, a guard against real sleeps, and the three worlds."""

import asyncio
import inspect
import os
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import certifi
import hypothesis
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck

from stkai import STKAI, SystemClock, _abandonable, _clock
from stkai.testing import QuotaServer

from .support.world import NAMES, World

pytest_plugins = ["tests.support.running"]

MORE = int(os.environ.get("STKAI_TEST_SEEDS", "1"))
"""How many times as many examples to try; then, they are not the same in each run."""

hypothesis.settings.register_profile(
    # Nothing is timed, and the fixtures here hold no state that one example could pass to the next.
    "stkai",
    deadline=None,
    max_examples=50 * MORE,
    derandomize=MORE == 1,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("stkai")

MAY_SLEEP = ("stkai.testing.", "subprocess.", "multiprocessing.")
"""Packages that may really sleep in any test: the embedded server, and the wait for a child process."""


PACKAGES = ("httpx", "httpx2") if find_spec("httpx2") else ("httpx",)

UNTRACED = (
    "tests/batch/test_faults",
    "tests/batch/test_resume",
    "tests/benchmarks/",
    "tests/examples/",
    "tests/reliability/",
    "tests/simulation/",
    "tests/stores/test_hostile",
    "tests/transports/limits/pace/test_sending",
    "tests/transports/limits/test_window",
    "tests/transports/retry/test_over_limiters",
    "tests/wire/test_streams",
    "tests/wire/test_ways_out",
)
"""Folders and files whose tests run what those of single modules have run."""

TRACED = 2
"""Rows of a table that are traced: sync and async, for example. The others differ in their values."""

AGAINST_HTTPX = {"tests.support.tokens", "tests.transports.hedge", "tests.transports.test_own_layers"}
"""Modules that keep httpx when a test runs in httpx2: the token endpoint, and layers as their authors write them."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests in their worlds, and those marked so in both packages, each world in one of them.

    Which event loop and which package it is, is settled by the name of the test, so that each has its half of them.
    With STKAI_TEST_SEEDS, every test runs in all worlds, and in each of these in both packages.
    """
    marker = metafunc.definition.get_closest_marker
    turn = zlib.crc32(metafunc.function.__name__.encode())
    packages = PACKAGES if marker("both_packages") else PACKAGES[:1]
    asked = marker("worlds")
    if "world" in metafunc.fixturenames:
        worlds: tuple[str, ...] = asked.args if asked else ("sync", ("asyncio", "trio")[turn % 2])
        pairs = [(world, packages[(turn // 2 + place) % len(packages)]) for place, world in enumerate(worlds)]
        if MORE > 1:
            pairs = [(world, package) for world in (worlds if asked else NAMES) for package in packages]
        if len(packages) > 1:
            metafunc.parametrize(("world", "package"), pairs, indirect=True)
        else:
            metafunc.parametrize("world", [world for world, _ in pairs], indirect=True)
    elif "event_loop" in metafunc.fixturenames:
        loops = asked.args if asked else NAMES[1:] if MORE > 1 else (NAMES[1 + turn % 2],)
        metafunc.parametrize("event_loop", [loop for loop in loops if loop != "sync"], indirect=True)
    elif "package" in metafunc.fixturenames and len(packages) > 1:
        metafunc.parametrize("package", packages, indirect=True)


def _without_repeats(items: list[pytest.Item]) -> list[pytest.Item]:
    """Leave each row of a table to one of the worlds, by turns, unless the test asks for its worlds."""
    rows: dict[str, dict[tuple[int, ...], int]] = defaultdict(dict)
    worlds: dict[str, list[str]] = defaultdict(list)
    places: list[tuple[str, int, int] | None] = []
    for item in items:
        case = getattr(item, "callspec", None)
        if MORE > 1 or case is None or "world" not in case.params or item.get_closest_marker("worlds"):
            places.append(None)
            continue
        name, world = item.nodeid.partition("[")[0], case.params["world"]
        # The same objects in each world, which need not be hashable.
        values = tuple(id(value) for key, value in case.params.items() if key not in {"world", "package"})
        row = rows[name].setdefault(values, len(rows[name]))
        if world not in worlds[name]:
            worlds[name].append(world)
        places.append((name, row, worlds[name].index(world)))
    return [
        item
        for item, place in zip(items, places, strict=True)
        if place is None or len(rows[place[0]]) == 1 or place[1] % len(worlds[place[0]]) == place[2]
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse ids that contain an address, since processes that share the tests must agree on them; trace a part."""
    items[:] = _without_repeats(items)
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if unstable:
        raise pytest.UsageError(
            f"give these parameters ids, such as ids=spelled of tests/support/ids.py: {unstable}"
        )
    rows = Counter[str]()
    for item in items:
        case = item.callspec.params if hasattr(item, "callspec") else {}
        rows[name := item.nodeid.partition("[")[0]] += 1
        is_repeated = case.get("world") == "trio" or rows[name] > TRACED or item.nodeid.startswith(UNTRACED)
        if is_repeated or hypothesis.is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The package whose requests, transports and errors a test is about: the modules of tests call it `httpx`."""
    name: str = getattr(request, "param", "httpx")
    if name != "httpx":
        for module in _modules_that_name_httpx():
            monkeypatch.setattr(module, "httpx", import_module(name))
    return name


@cache
def _modules_that_name_httpx() -> list[ModuleType]:
    """The modules of tests, all of which have been imported."""
    return [
        module
        for key, module in sys.modules.items()
        if key.startswith("tests.") and key not in AGAINST_HTTPX and hasattr(module, "httpx")
    ]


@pytest.fixture
def world(request: pytest.FixtureRequest, package: str) -> World:
    """Runs the test as sync code and on an event loop; see `pytest_generate_tests` and `World`."""
    return World(request.param)


@pytest.fixture
def event_loop(request: pytest.FixtureRequest) -> World:
    """The world of one event loop: that of asyncio, or of trio."""
    return World(request.param)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[QuotaServer]:
    """A server with a quota and a token endpoint; for tests that are marked `without_auth`, it wants no token."""
    with QuotaServer(auth_required=request.node.get_closest_marker("without_auth") is None) as server:
        yield server


@pytest.fixture
def quick_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an unwanted body have 0.3 s to arrive, and not a second."""
    monkeypatch.setattr("stkai.transports._bodies._MAX_DRAIN_TIME", 0.3)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test in its world."""
    world = pyfuncitem.funcargs.get("world") or pyfuncitem.funcargs.get("event_loop")
    if not isinstance(world, World) or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    world.run(pyfuncitem.obj(**arguments))
    return True


@pytest.fixture(scope="session", autouse=True)
def one_root_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Load one certificate for each client instead of 140, which takes 14 ms; no test calls the Internet."""
    path = tmp_path_factory.mktemp("certificates") / "root.pem"
    first, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
    path.write_text(first + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


UNCONFIGURED = dict(vars(STKAI))
"""The settings of a process that has neither set nor read any."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the machine's settings and proxies out of a test, and its `STKAI.configure` out of the next one."""
    for name in os.environ:
        if name.upper().startswith("STKAI_") or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    vars(STKAI).update(UNCONFIGURED)  # A module of tests may have read the settings when it was imported.
    yield
    vars(STKAI).update(UNCONFIGURED)


class SleepGuard:
    """Fails the test that really sleeps.

    Attributes:
        is_on: whether the running test must not sleep.
        earlier: the threads that earlier tests have left, such as one that fetches a token, which may sleep.
        elsewhere: what other threads than the main one did: their errors do not reach the test by themselves.
    """

    def __init__(self) -> None:
        self.is_on = False
        self.earlier = set[threading.Thread]()
        self.elsewhere: list[str] = []

    def watch(self, patch: pytest.MonkeyPatch, owner: Any, name: str, position: int = 0) -> None:
        """Watch a function that sleeps for as many seconds as its argument at this position says."""
        original: Callable[..., Any] = getattr(owner, name)

        @wraps(original)
        def sleep(*args: Any, **kwargs: Any) -> Any:
            seconds = args[position] if len(args) > position else next(iter(kwargs.values()))
            here = threading.current_thread()
            if self.is_on and seconds > 0 and here not in self.earlier and not _may_sleep():
                problem = (
                    f"{owner.__name__}.{name}({seconds:g}) was called: pass a stkai.testing.FakeClock as clock=, "
                    "or mark the test with pytest.mark.real_time"
                )
                if here is not threading.main_thread():
                    self.elsewhere.append(problem)
                pytest.fail(problem)
            return original(*args, **kwargs)

        patch.setattr(owner, name, sleep)


@pytest.fixture(scope="session")
def sleep_guard() -> Iterator[SleepGuard]:
    """Watches every function that sleeps; each test switches it on or off."""
    guard = SleepGuard()
    with pytest.MonkeyPatch.context() as patch:
        for owner in (time, asyncio, anyio, trio):
            guard.watch(patch, owner, "sleep")
        for name in ("sleep", "asleep"):
            guard.watch(patch, SystemClock, name, position=1)
        yield guard


@pytest.fixture(autouse=True)
def no_real_sleep(
    request: pytest.FixtureRequest, sleep_guard: SleepGuard, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fail a test on a real sleep in any task, or thread that it started, unless it is marked `real_time`."""
    sleep_guard.is_on = request.node.get_closest_marker("real_time") is None
    if not sleep_guard.is_on:  # What ends some sleeps early must recognise the system's clock.
        monkeypatch.setattr(_clock, "_SLEEPS", (SystemClock.sleep, SystemClock.asleep))
    _abandonable.idle_workers.drop()  # Threads that this test uses are its own.
    sleep_guard.earlier = set(threading.enumerate()) - {threading.main_thread()}
    yield
    sleep_guard.is_on = False
    if elsewhere := sleep_guard.elsewhere:
        problem = elsewhere[0]
        elsewhere.clear()
        pytest.fail(problem)


def _may_sleep() -> bool:
    """Whether the sleep is allowed: time is virtual, or a caller may sleep."""
    with suppress(RuntimeError):
        if isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock):
            return True
    frame = inspect.currentframe()
    while frame is not None:
        if f"{frame.f_globals.get('__name__')}.".startswith(MAY_SLEEP):
            return True
        frame = frame.f_back
    return False
