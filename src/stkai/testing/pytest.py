"""Fixtures for pytest: put `pytest_plugins = ["stkai.testing.pytest"]` into your `conftest.py`."""

import os
import sys
from collections.abc import Iterator

import pytest

from .._config import STKAI, GlobalSettings
from .._config.names import PREFIX
from ._server import QuotaServer


@pytest.fixture
def stkai_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[GlobalSettings]:
    """`STKAI`, isolated from the machine's variables and CLI, and from `configure()` in earlier tests.

    Variables that the test sets later with `monkeypatch.setenv` count, even after a client has been built.
    """
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)
    # StackSpot CLI takes precedence over a client id and secret; a fake that is already imported stays.
    cli = sys.modules.get("oscli.core.http")
    if cli is None or getattr(cli, "__spec__", None) is not None:
        monkeypatch.setitem(sys.modules, "oscli.core.http", None)
    monkeypatch.setattr(STKAI, "keeps_what_it_reads", False)
    STKAI.reset()
    yield STKAI
    STKAI.reset()


@pytest.fixture
def stkai_server() -> Iterator[QuotaServer]:
    """A `QuotaServer` without a quota, running; a new one for each test. Needs the extra `stkai[testing]`."""
    with QuotaServer() as server:
        yield server
