"""`configure`, `config` and `reset`, and the settings of the process."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stkai._config import STKAI, GlobalSettings
from stkai._config.models import RateLimitConfig, Settings
from stkai._config.sources import Explained
from stkai._errors import ConfigurationError

from ..support.settings import made, refusal, row

# configure, config, reset


def test_later_calls_win_field_by_field_and_earlier_fields_stay(stkai: GlobalSettings) -> None:
    stkai.configure(rate_limit={"enabled": True, "max_requests": 5}, http={"max_connections": 9})
    stkai.configure(rate_limit={"max_requests": 6, "max_wait_time": None})
    assert stkai.config.rate_limit == RateLimitConfig(enabled=True, max_requests=6, max_wait_time=None)
    assert stkai.config.http.max_connections == 9


def test_none_in_configure_beats_the_environment(stkai: GlobalSettings, env: pytest.MonkeyPatch) -> None:
    env.setenv("STKAI_RETRY_DEADLINE", "5")
    stkai.configure(retry={"deadline": None})
    assert stkai.config.retry.deadline is None
    assert row(stkai, "STKAI_RETRY_DEADLINE") == Explained("STKAI_RETRY_DEADLINE", "none", "configure")


def test_the_environment_is_read_once(stkai: GlobalSettings, env: pytest.MonkeyPatch) -> None:
    env.setenv("STKAI_HTTP_MAX_CONNECTIONS", "1")
    first = stkai.config
    env.setenv("STKAI_HTTP_MAX_CONNECTIONS", "2")
    assert stkai.config is first
    stkai.reset()
    assert stkai.config.http.max_connections == 2


def test_changes_to_the_environment_between_configure_and_first_use_count(
    stkai: GlobalSettings, env: pytest.MonkeyPatch
) -> None:
    stkai.configure(rate_limit={"enabled": True})
    env.setenv("STKAI_HTTP_MAX_CONNECTIONS", "2")
    assert stkai.config.http.max_connections == 2
    assert stkai.config.rate_limit.enabled


def test_configure_and_reset_return_the_settings(stkai: GlobalSettings, env: pytest.MonkeyPatch) -> None:
    assert stkai.configure(retry={"max_retries": 7}).retry.max_retries == 7
    env.setenv("STKAI_RETRY_MAX_RETRIES", "8")
    assert stkai.reset().retry.max_retries == 8
    env.setenv("STKAI_RETRY_MAX_RETRIES", "many")
    assert stkai.reset() == Settings()
    assert "STKAI_RETRY_MAX_RETRIES" in refusal(stkai)


def test_reset_forgets_everything(stkai: GlobalSettings, tmp_path: Path) -> None:
    file = tmp_path / "x.env"
    file.write_text("STKAI_HTTP_MAX_CONNECTIONS=7")
    stkai.configure(retry={"enabled": False}, env_file=file)
    stkai.reset()
    assert stkai.config == Settings()


@pytest.mark.parametrize(
    "bad",
    [
        {"http": {"max_connections": 0}},
        {"http": {"timeot": 5}},
        {"https": {"max_connections": 5}},
        {"http": "max_connections=5"},
        {"http": {5: 5}},
        {"http": {"max_connections": 5}, "auth": {"client_id": "half"}},
        {"http": {"max_connections": 5}, "env_file": "/no/such/file"},
    ],
)
def test_a_refused_configure_changes_nothing(stkai: GlobalSettings, bad: dict[str, Any]) -> None:
    stkai.configure(http={"max_connections": 4})
    before = stkai.config
    with pytest.raises(ConfigurationError):
        stkai.configure(**bad)
    assert stkai.config is before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ratelimit": {}}, r"configure\(ratelimit=...\) is not a setting; did you mean 'rate_limit'\?"),
        (
            {"zzz": {}},
            r"configure\(zzz=...\) is not a setting; there are auth, rate_limit, retry, http, env_file",
        ),
        (
            {"retry": {"max_retrys": 1}},
            r"\{'max_retrys': ...\}\) is not a setting; did you mean 'max_retries'\?",
        ),
        ({"retry": {"self": 1}}, r"\{'self': ...\}\) is not a setting; there are enabled, max_retries, "),
        ({"retry": [1]}, r"configure\(retry=...\) takes a dict of fields and values, not list"),
    ],
)
def test_an_unknown_name_in_configure_is_an_error_with_a_suggestion(
    stkai: GlobalSettings, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        stkai.configure(**arguments)


def test_a_preset_in_configure_is_refused_with_the_way_to_pass_it(stkai: GlobalSettings) -> None:
    preset: Any = RateLimitConfig.conservative_preset()
    with pytest.raises(ConfigurationError, match=r"not RateLimitConfig: pass its model_dump\(\)"):
        stkai.configure(rate_limit=preset)
    assert stkai.configure(rate_limit=preset.model_dump()).rate_limit == preset


def test_threads_that_configure_and_read_at_the_same_time_lose_nothing(stkai: GlobalSettings) -> None:
    fields = [("max_requests", 7), ("time_window", 8.0), ("max_wait_time", 9.0), ("enabled", True)]

    def work(field: tuple[str, Any]) -> Settings:
        stkai.configure(rate_limit=dict([field]))
        return stkai.config

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, fields))
    assert stkai.config.rate_limit == made(RateLimitConfig, **dict(fields))


# The process-wide settings


def test_there_is_one_instance_per_process() -> None:
    STKAI.configure(http={"max_connections": 3})
    assert STKAI.config.http.max_connections == 3
    STKAI.reset()
    assert repr(STKAI) == "STKAI"


@pytest.mark.parametrize("path", [3, b".env", ["a"]])
def test_what_is_no_path_is_refused_by_name_and_changes_nothing(stkai: GlobalSettings, path: Any) -> None:
    stkai.configure(retry={"max_retries": 9})
    with pytest.raises(ConfigurationError, match="env_file must be a path"):
        stkai.configure(retry={"max_retries": 8}, env_file=path)
    assert stkai.config.retry.max_retries == 9


def test_a_dict_with_other_keys_is_not_called_a_dict(stkai: GlobalSettings) -> None:
    fields: Any = {1: 2}
    with pytest.raises(
        ConfigurationError, match="takes a dict of fields and values, not one with other keys"
    ):
        stkai.configure(retry=fields)
