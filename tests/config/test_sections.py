"""Sections that a program creates itself, and the quota and its share."""

from pathlib import Path
from typing import Any

import pytest

from stkai._config import GlobalSettings
from stkai._config.models import AuthConfig, HttpConfig, RateLimitConfig, RetryConfig, Settings
from stkai._config.sources import Explained
from stkai._errors import ConfigurationError

from ..support.settings import SECRET, made, refusal, row

# Direct construction


def test_a_section_created_directly_does_not_read_the_environment(env: pytest.MonkeyPatch) -> None:
    env.setenv("STKAI_RATE_LIMIT_MAX_REQUESTS", "7")
    assert RateLimitConfig(time_window=1).max_requests == 100
    assert Settings(rate_limit=RateLimitConfig(max_requests=5)).rate_limit.max_requests == 5


def test_a_section_created_directly_accepts_a_path_and_one_origin() -> None:
    assert made(HttpConfig, verify=Path(__file__)).verify == __file__
    assert made(AuthConfig, origins="https://a.example").origins == ("https://a.example",)


def test_a_section_is_refused_by_its_own_name_if_its_values_are_not_named() -> None:
    """stkai 0.4 took them in order."""
    section: Any = AuthConfig
    with pytest.raises(TypeError, match=r"^AuthConfig takes keyword arguments only$") as caught:
        section("my-client", SECRET)
    assert SECRET not in str(caught.traceback[-1].frame.f_locals)


@pytest.mark.parametrize(
    ("model", "values", "said"),
    [
        (
            RateLimitConfig,
            {"max_requests": 0},
            "RateLimitConfig.max_requests is 0; it must be a positive whole number, or 'none'",
        ),
        (RetryConfig, {"retries": 1}, "RetryConfig.retries is not a setting; did you mean 'max_retries'?"),
        (
            HttpConfig,
            {"verify": ""},
            "HttpConfig.verify is ''; it must be true, false, or the path of a CA bundle that exists",
        ),
        (Settings, {"http": "x"}, "Settings.http is 'x'; it must be an HttpConfig"),
        (
            Settings,
            {"http": {"max_connections": 0}},
            "HttpConfig.max_connections is 0; it must be a positive whole number, or 'unlimited'",
        ),
        (
            AuthConfig,
            {"client_id": "", "client_secret": SECRET},
            "AuthConfig.client_id is ''; it must be a non-empty string",
        ),
    ],
)
def test_a_section_created_directly_names_itself_in_its_errors(
    model: type[Any], values: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        made(model, **values)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("name", "value"), [("max_requests", 10**21), ("time_window", 1e-10), ("max_cost", 1e21)]
)
def test_a_number_that_no_limiter_takes_is_refused_with_its_variable(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError) as caught:
        made(RateLimitConfig, **{name: value})
    said = f"{name} (STKAI_RATE_LIMIT_{name.upper()}) must be between 1e-9 and 1e20, not {value!r}"
    assert str(caught.value) == said


def test_sections_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        made(HttpConfig).max_connections = 5


# The quota, and with whom it is shared


def test_a_token_bucket_has_the_default_numbers() -> None:
    assert RateLimitConfig().quota() == (100, 60.0)
    assert RateLimitConfig(max_requests=5).quota() == (5, 60.0)


def test_the_adaptive_limiter_finds_the_quota_unless_a_number_is_given(stkai: GlobalSettings) -> None:
    assert RateLimitConfig(strategy="adaptive").quota() == (None, None)
    assert RateLimitConfig(strategy="adaptive", max_requests=None, time_window=None).quota() == (None, None)
    assert RateLimitConfig(strategy="adaptive", max_requests=100).quota() == (100, 60.0)
    assert stkai.config.rate_limit.model_copy(update={"strategy": "adaptive"}).quota() == (None, None)
    given = stkai.configure(rate_limit={"max_requests": 100}).rate_limit
    assert given.model_copy(update={"strategy": "adaptive"}).quota() == (100, 60.0)


def test_the_adaptive_limiter_with_units_alone_has_no_ceiling_of_requests() -> None:
    assert RateLimitConfig(strategy="adaptive", max_cost=1000).quota() == (None, 60.0)
    assert RateLimitConfig(strategy="adaptive", max_requests=None, max_cost=1000, time_window=1).quota() == (
        None,
        1,
    )
    assert RateLimitConfig(strategy="adaptive", max_requests=5, max_cost=1000).quota() == (5, 60.0)


@pytest.mark.parametrize("field", ["max_requests", "time_window"])
def test_a_token_bucket_without_numbers_is_refused(field: str) -> None:
    with pytest.raises(
        ConfigurationError, match="a token bucket needs time_window and max_requests or max_cost"
    ):
        made(RateLimitConfig, **{field: None})


@pytest.mark.parametrize(
    ("preset", "wait", "factors"),
    [
        (RateLimitConfig.conservative_preset(max_requests=7), 120.0, (0.05, 0.5, 0.02)),
        (RateLimitConfig.balanced_preset(7, 60.0), 45.0, (0.1, 0.3, 0.05)),
        (RateLimitConfig.optimistic_preset(7), 20.0, (0.3, 0.15, 0.1)),
    ],
)
def test_the_presets_are_those_of_stkai_0_4(
    preset: RateLimitConfig, wait: float, factors: tuple[float, float, float]
) -> None:
    assert (preset.enabled, preset.strategy, preset.quota(), preset.max_wait_time) == (
        True,
        "adaptive",
        (7, 60.0),
        wait,
    )
    assert (preset.min_rate_floor, preset.penalty_factor, preset.recovery_factor) == factors


class Lending:
    """A custom store."""

    def lease(self) -> None: ...

    def amend(self) -> None: ...

    def close(self) -> None: ...


class Incomplete:
    """It lacks `amend` and `close`, so a limiter could not use it."""

    def lease(self) -> None: ...


@pytest.mark.parametrize(
    "store",
    [None, "file", "file:///var/x", "redis://host:6379/0", "rediss://host", "unix:///run/redis", Lending()],
)
def test_a_share_accepts_a_store_of_each_known_kind(store: object) -> None:
    config = made(RateLimitConfig, share="team", store=store)
    assert (config.share, config.store) == ("team", store)


@pytest.mark.parametrize(
    "store", ["", "files", "mysql://h", "redis:", "/var/x", 7, b"file", Lending, Incomplete()]
)
def test_an_unknown_store_is_refused_and_the_error_lists_the_known_kinds(store: object) -> None:
    with pytest.raises(ConfigurationError, match=r"RateLimitConfig\.store is .*redis://"):
        made(RateLimitConfig, share="team", store=store)


@pytest.mark.parametrize("share", ["", "  ", 7, b"x"])
def test_a_share_without_a_name_is_refused(share: object) -> None:
    with pytest.raises(ConfigurationError, match=r"RateLimitConfig\.share"):
        made(RateLimitConfig, share=share)


def test_configure_accepts_any_name_for_a_share(stkai: GlobalSettings) -> None:
    assert stkai.configure(rate_limit={"share": "none"}).rate_limit.share == "none"


def test_a_store_without_a_share_is_refused(stkai: GlobalSettings, env: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="share"):
        made(RateLimitConfig, store="file")
    env.setenv("STKAI_RATE_LIMIT_STORE", "file")
    assert "STKAI_RATE_LIMIT_SHARE" in refusal(stkai)


def test_a_warm_start_takes_any_name_and_the_last_source_counts(
    stkai: GlobalSettings, env: pytest.MonkeyPatch
) -> None:
    env.setenv("STKAI_RATE_LIMIT_WARM_START", "variable")
    assert stkai.config.rate_limit.warm_start == "variable"
    assert stkai.configure(rate_limit={"warm_start": "none"}).rate_limit.warm_start == "none"
    assert row(stkai, "STKAI_RATE_LIMIT_WARM_START") == Explained(
        "STKAI_RATE_LIMIT_WARM_START", "none", "configure"
    )
    assert stkai.configure(rate_limit={"warm_start": None}).rate_limit.warm_start is None


@pytest.mark.parametrize("name", ["", "  ", 7, b"x", True])
def test_a_warm_start_without_a_name_is_refused(name: object) -> None:
    with pytest.raises(ConfigurationError, match=r"RateLimitConfig\.warm_start"):
        made(RateLimitConfig, strategy="adaptive", warm_start=name)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"share": "team"}, "warm_start='key' must be the name of the share, 'team'"),
        ({"penalty_factor": 0.5}, "plain AIMD starts at the whole quota"),
        ({"recovery_factor": 0.5}, "plain AIMD starts at the whole quota"),
        ({"warm_start": "a\x07"}, "must be text that can be printed"),
    ],
)
def test_a_warm_start_that_could_not_keep_its_promise_is_refused(
    stkai: GlobalSettings, others: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^STKAI_RATE_LIMIT_WARM_START: .*{message}"):
        stkai.configure(rate_limit={"strategy": "adaptive", "warm_start": "key", **others})
    assert stkai.config.rate_limit.warm_start is None
