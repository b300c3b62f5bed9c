"""What the tests of the settings share: separate settings, as in a new process."""

import pytest

from stkai._config import GlobalSettings


@pytest.fixture
def stkai() -> GlobalSettings:
    """Separate settings, as in a new process."""
    return GlobalSettings()


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment, put back after the test."""
    return monkeypatch
