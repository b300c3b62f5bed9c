"""Settings: all sources, their order, what is allowed, and the errors for anything else."""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from stkai._config.messages import masked
from stkai._config.models import AuthConfig, HttpConfig, RateLimitConfig, RetryConfig, Settings
from stkai._config.names import DEFAULT_TOKEN_URL
from stkai._config.sources import MODELS, Explained, load
from stkai._config.stkai import STKAI, GlobalSettings
from stkai._errors import ConfigurationError
from stkai._secrets import MASK

SECRET = "s3cr3t-of-the-client"


@pytest.fixture
def stkai() -> GlobalSettings:
    """Separate settings, as in a new process."""
    return GlobalSettings()


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment, put back after the test."""
    return monkeypatch


def row(stkai: GlobalSettings, variable: str) -> Explained:
    (found,) = (each for each in stkai.provenance() if each.variable == variable)
    return found


def refusal(stkai: GlobalSettings) -> str:
    with pytest.raises(ConfigurationError) as caught:
        _ = stkai.config
    return str(caught.value)


# Defaults and where values come from


def test_without_any_source_the_defaults_are_in_force(stkai: GlobalSettings) -> None:
    assert stkai.config == Settings()
    assert stkai.config.auth == AuthConfig(
        client_id=None, client_secret=None, token_url=DEFAULT_TOKEN_URL, origins=None, refresh_margin=60
    )
    assert stkai.config.rate_limit == RateLimitConfig(
        enabled=False, strategy="token_bucket", max_requests=100, time_window=60, max_wait_time=None
    )
    assert stkai.config.retry.retry_on_status_codes == (408, 429, 500, 502, 503, 504)
    assert stkai.config.http.max_connections == 100
    assert {each.source for each in stkai.provenance()} == {"default"}


def test_each_setting_has_one_row_in_the_order_of_the_sections(stkai: GlobalSettings) -> None:
    assert [each.variable for each in stkai.provenance()] == [
        f"STKAI_{section}_{field}".upper()
        for section, model in MODELS.items()
        for field in model.model_fields
    ]


def test_configure_beats_environment_beats_file_beats_default(
    stkai: GlobalSettings, env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "service.env"
    file.write_text(
        "export STKAI_RETRY_MAX_RETRIES=1\nSTKAI_RETRY_INITIAL_DELAY='1'\nSTKAI_RETRY_MAX_DELAY=10\nOTHER=1\n"
    )
    env.setenv("STKAI_RETRY_MAX_RETRIES", "2")
    env.setenv("STKAI_RETRY_INITIAL_DELAY", "2")
    stkai.configure(retry={"max_retries": 3}, env_file=file)

    retry = stkai.config.retry
    assert (retry.max_retries, retry.initial_delay, retry.max_delay, retry.max_retry_after) == (3, 2, 10, 60)
    assert row(stkai, "STKAI_RETRY_MAX_RETRIES").source == "configure"
    assert row(stkai, "STKAI_RETRY_INITIAL_DELAY").source == "environment"
    assert row(stkai, "STKAI_RETRY_MAX_DELAY").source == f".env file {file}"
    assert row(stkai, "STKAI_RETRY_MAX_RETRY_AFTER").source == "default"
    assert row(stkai, "STKAI_ENV_FILE") == Explained("STKAI_ENV_FILE", str(file), "configure")


def test_the_environment_can_name_the_file(
    stkai: GlobalSettings, env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.env").write_text("STKAI_HTTP_MAX_CONNECTIONS=7\nSTKAI_HTTP_PROXY\nSTKAI_HTTP_HTTP2=\n")
    env.setenv("STKAI_ENV_FILE", "a.env")
    env.chdir(tmp_path)
    assert stkai.config.http == HttpConfig(max_connections=7)
    assert row(stkai, "STKAI_ENV_FILE") == Explained("STKAI_ENV_FILE", str(tmp_path / "a.env"), "environment")


def test_configures_env_file_beats_the_environments_and_survives_a_change_of_directory(
    stkai: GlobalSettings, env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine.env").write_text("STKAI_HTTP_MAX_CONNECTIONS=7")
    env.setenv("STKAI_ENV_FILE", str(tmp_path / "missing.env"))
    env.chdir(tmp_path)
    stkai.configure(env_file="mine.env")
    env.chdir("/")
    stkai.configure(http={"http2": True})
    assert stkai.config.http == HttpConfig(max_connections=7, http2=True)


def test_an_unnamed_file_is_not_read(stkai: GlobalSettings, env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("STKAI_HTTP_MAX_CONNECTIONS=7")
    env.chdir(tmp_path)
    assert stkai.config.http.max_connections == 100


@pytest.mark.parametrize("content", [None, b"STKAI_HTTP_MAX_CONNECTIONS=\xff", "folder"])
def test_a_named_file_that_cannot_be_read_is_an_error(
    stkai: GlobalSettings, env: pytest.MonkeyPatch, tmp_path: Path, content: bytes | str | None
) -> None:
    file = tmp_path / "x.env"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        file.mkdir()
    with pytest.raises(ConfigurationError, match=r"configure\(env_file=...\) names .*x\.env"):
        stkai.configure(env_file=file)
    env.setenv("STKAI_ENV_FILE", str(file))
    assert "STKAI_ENV_FILE names" in refusal(stkai)


def test_a_file_in_the_home_of_an_unknown_user_is_an_error(stkai: GlobalSettings) -> None:
    with pytest.raises(ConfigurationError, match="unknown user"):
        stkai.configure(env_file="~no-such-user-here/x.env")


def test_an_empty_variable_counts_as_unset(stkai: GlobalSettings, env: pytest.MonkeyPatch) -> None:
    for each in stkai.provenance():
        env.setenv(each.variable, "")
    env.setenv("STKAI_ENV_FILE", "")
    stkai.reset()
    assert stkai.config == Settings()
    assert {each.source for each in stkai.provenance()} == {"default"}


def test_variable_names_are_case_insensitive(stkai: GlobalSettings, env: pytest.MonkeyPatch) -> None:
    env.setenv("stkai_Rate_Limit_max_requests", "7")
    assert stkai.config.rate_limit.max_requests == 7
    assert row(stkai, "STKAI_RATE_LIMIT_MAX_REQUESTS") == Explained(
        "STKAI_RATE_LIMIT_MAX_REQUESTS", "7", "environment"
    )


def test_a_variable_with_the_name_of_a_section_hides_nothing(
    stkai: GlobalSettings, env: pytest.MonkeyPatch
) -> None:
    env.setenv("STKAI_AUTH", "production")
    env.setenv("STKAI_AUTH_REFRESH_MARGIN", "5")
    assert stkai.config.auth.refresh_margin == 5


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


def test_threads_that_configure_and_read_at_the_same_time_lose_nothing(stkai: GlobalSettings) -> None:
    fields = [("max_requests", 7), ("time_window", 8.0), ("max_wait_time", 9.0), ("enabled", True)]

    def work(field: tuple[str, Any]) -> Settings:
        stkai.configure(rate_limit=dict([field]))
        return stkai.config

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, fields))
    assert stkai.config.rate_limit == made(RateLimitConfig, **dict(fields))


# What is allowed

TEXTS: list[tuple[str, str, Any]] = [
    ("STKAI_AUTH_ORIGINS", "https://a.example", ("https://a.example",)),
    ("STKAI_AUTH_ORIGINS", " HTTPS://A.example:443/ ,http://b:80, ", ("https://a.example", "http://b")),
    (
        "STKAI_AUTH_ORIGINS",
        '["https://a.example:8443", "http://[::1]:5"]',
        ("https://a.example:8443", "http://[::1]:5"),
    ),
    ("STKAI_AUTH_ORIGINS", "https://a,https://a/", ("https://a",)),
    ("STKAI_AUTH_ORIGINS", "none", None),
    ("STKAI_AUTH_CLIENT_ID", "none", "none"),
    ("STKAI_AUTH_CLIENT_ID", " me\n", "me"),
    ("STKAI_AUTH_SCOPE", "read write", "read write"),
    ("STKAI_AUTH_SCOPE", "none", None),
    ("STKAI_AUTH_AUDIENCE", "https://api.example", "https://api.example"),
    ("STKAI_AUTH_CLIENT_AUTH", "basic", "basic"),
    ("STKAI_RATE_LIMIT_ENABLED", "true", True),
    ("STKAI_RATE_LIMIT_STRATEGY", "adaptive", "adaptive"),
    ("STKAI_RATE_LIMIT_MAX_WAIT_TIME", "unlimited", None),
    ("STKAI_RATE_LIMIT_MAX_WAIT_TIME", "None", None),
    ("STKAI_RATE_LIMIT_MAX_WAIT_TIME", "NULL", None),
    ("STKAI_RATE_LIMIT_MIN_RATE_FLOOR", "1", 1.0),
    ("STKAI_RATE_LIMIT_RECOVERY_FACTOR", "none", None),
    ("STKAI_RATE_LIMIT_SHARE", "my team: 1", "my team: 1"),
    ("STKAI_RATE_LIMIT_SHARE", "none", None),
    ("STKAI_RATE_LIMIT_STORE_TIMEOUT", "0.5", 0.5),
    ("STKAI_RATE_LIMIT_WARM_START", "team key", "team key"),
    ("STKAI_RATE_LIMIT_WARM_START", "none", None),
    ("STKAI_RETRY_RETRY_TIMEOUTS", "yes", True),
    ("STKAI_RETRY_RETRY_ON_STATUS_CODES", "503", (503,)),
    ("STKAI_RETRY_RETRY_ON_STATUS_CODES", "429, 503", (429, 503)),
    ("STKAI_RETRY_RETRY_ON_STATUS_CODES", "[429, 503]", (429, 503)),
    ("STKAI_RETRY_RETRY_ON_STATUS_CODES", "[]", ()),
    ("STKAI_RETRY_DEADLINE", "2.5", 2.5),
    ("STKAI_RETRY_IDEMPOTENCY_HEADER", "Idempotency-Key", "Idempotency-Key"),
    ("STKAI_HTTP_VERIFY", "False", False),
    ("STKAI_HTTP_VERIFY", "on", True),
    ("STKAI_HTTP_VERIFY", "0", False),
    ("STKAI_HTTP_VERIFY", __file__, __file__),
    ("STKAI_HTTP_MAX_CONNECTIONS", "unlimited", None),
    ("STKAI_HTTP_MAX_KEEPALIVE_CONNECTIONS", "0", 0),
    ("STKAI_HTTP_PROXY", "socks5://proxy:1080", "socks5://proxy:1080"),
]


@pytest.mark.parametrize(("variable", "text", "value"), TEXTS)
def test_a_variable_is_read_as_its_field_says(
    stkai: GlobalSettings, env: pytest.MonkeyPatch, variable: str, text: str, value: object
) -> None:
    env.setenv("STKAI_AUTH_CLIENT_ID", "id")
    env.setenv("STKAI_AUTH_CLIENT_SECRET", SECRET)
    env.setenv(variable, text)
    section = next(name for name in MODELS if variable.startswith(f"STKAI_{name}_".upper()))
    field = variable.removeprefix(f"STKAI_{section}_".upper()).lower()
    assert getattr(getattr(stkai.config, section), field) == value
    assert row(stkai, variable).source == "environment"


REFUSED: list[tuple[str, str, str]] = [
    ("STKAI_AUTH_ORIGINS", "a.example", "origins"),
    ("STKAI_AUTH_ORIGINS", "https://a.example/path", "without a path"),
    ("STKAI_AUTH_ORIGINS", "https://a.example?q", "origins"),
    ("STKAI_AUTH_ORIGINS", "https://*.example", "origins"),
    ("STKAI_AUTH_ORIGINS", "https://", "origins"),
    ("STKAI_AUTH_ORIGINS", "https://a:port", "origins"),
    ("STKAI_AUTH_ORIGINS", "ftp://a", "https://host"),
    ("STKAI_AUTH_ORIGINS", '["https://a"', "separated by commas"),
    ("STKAI_AUTH_ORIGINS", ",", "origins"),
    ("STKAI_AUTH_TOKEN_URL", "/token", "a URL (http:// or https://)"),
    ("STKAI_AUTH_CLIENT_AUTH", "header", "'body' or 'basic'"),
    ("STKAI_AUTH_REFRESH_MARGIN", "-1", "a non-negative number of seconds"),
    ("STKAI_RATE_LIMIT_ENABLED", "maybe", "true or false"),
    ("STKAI_RATE_LIMIT_STRATEGY", "fixed", "'token_bucket' or 'adaptive'"),
    ("STKAI_RATE_LIMIT_MAX_REQUESTS", "0", "a positive whole number"),
    ("STKAI_RATE_LIMIT_MAX_REQUESTS", "1.5", "a positive whole number"),
    ("STKAI_RATE_LIMIT_SHARE", "  ", "a non-empty string"),
    ("STKAI_RATE_LIMIT_STORE", "memcached://host", "'file', a URL (file:///dir, redis://"),
    ("STKAI_RATE_LIMIT_STORE", "files", "redis://"),
    ("STKAI_RATE_LIMIT_STORE_TIMEOUT", "0", "a positive number of seconds"),
    ("STKAI_RATE_LIMIT_WARM_START", "  ", "the name of a quota, a non-empty string"),
    ("STKAI_RATE_LIMIT_TIME_WINDOW", "inf", "a positive number of seconds"),
    ("STKAI_RATE_LIMIT_TIME_WINDOW", "unlimited", "a positive number of seconds"),
    ("STKAI_RATE_LIMIT_MAX_WAIT_TIME", "0", "or 'unlimited'"),
    ("STKAI_RATE_LIMIT_MIN_RATE_FLOOR", "0", "above 0 and at most 1"),
    ("STKAI_RATE_LIMIT_PENALTY_FACTOR", "1", "below 1"),
    ("STKAI_RATE_LIMIT_RECOVERY_FACTOR", "nan", "at most 1"),
    ("STKAI_RETRY_MAX_RETRIES", "-1", "a non-negative whole number"),
    ("STKAI_RETRY_INITIAL_DELAY", "soon", "a non-negative number of seconds"),
    ("STKAI_RETRY_RETRY_ON_STATUS_CODES", "429,99", "from 100 to 599"),
    ("STKAI_RETRY_RETRY_ON_STATUS_CODES", "429;503", "separated by commas"),
    ("STKAI_RETRY_DEADLINE", "0", "a positive number of seconds, or 'none'"),
    ("STKAI_RETRY_IDEMPOTENCY_HEADER", "Idempotency Key", "a header name"),
    ("STKAI_HTTP_VERIFY", "/no/such/bundle.pem", "the path of a CA bundle that exists"),
    ("STKAI_HTTP_VERIFY", "~no-such-user-here/bundle.pem", "that exists"),
    ("STKAI_HTTP_VERIFY", "x" * 5000, "that exists"),
    ("STKAI_HTTP_MAX_CONNECTIONS", "0", "a positive whole number, or 'unlimited'"),
    ("STKAI_HTTP_PROXY", "proxy:3128", "a URL"),
]


@pytest.mark.parametrize(("variable", "text", "allowed"), REFUSED)
def test_a_refused_variable_is_named_with_its_value_and_what_is_allowed(
    stkai: GlobalSettings, env: pytest.MonkeyPatch, variable: str, text: str, allowed: str
) -> None:
    env.setenv(variable, text)
    said = refusal(stkai)
    assert said.startswith(f"{variable} (environment) is {text!r}; it must be ")
    assert allowed in said


def test_a_refused_value_of_a_file_is_named_with_the_file(stkai: GlobalSettings, tmp_path: Path) -> None:
    file = tmp_path / "x.env"
    file.write_text("STKAI_HTTP_MAX_CONNECTIONS=slow")
    with pytest.raises(ConfigurationError) as caught:
        stkai.configure(env_file=file)
    assert str(caught.value).startswith(
        f"STKAI_HTTP_MAX_CONNECTIONS (.env file {file}) is 'slow'; it must be "
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (True, "True"),
        (float("inf"), "inf"),
        ("x", "'x'"),
        ({}, "a dict"),
        ([0], "[0]"),
    ],
)
def test_a_refused_argument_of_configure_is_named_with_its_variable(
    stkai: GlobalSettings, value: object, shown: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        stkai.configure(rate_limit={"max_requests": value})
    assert str(caught.value) == (
        "STKAI_RATE_LIMIT_MAX_REQUESTS or configure(rate_limit={'max_requests': ...}) "
        f"is {shown}; it must be a positive whole number"
    )


def test_one_error_lists_everything_that_is_wrong(stkai: GlobalSettings, env: pytest.MonkeyPatch) -> None:
    env.setenv("STKAI_RATE_LIMIT_MAX_REQUESTS", "0")
    env.setenv("STKAI_RETRY_MAX_RETRIES", "x")
    env.setenv("STKAI_RETRY_RETRY_ON_STATUS_CODES", "1,2,3")
    first, *rest = refusal(stkai).splitlines()
    assert first == "3 settings cannot be used:"
    assert [line.split()[1] for line in rest] == [
        "STKAI_RATE_LIMIT_MAX_REQUESTS",
        "STKAI_RETRY_MAX_RETRIES",
        "STKAI_RETRY_RETRY_ON_STATUS_CODES",
    ]


@pytest.mark.parametrize(("there", "missing"), [("ID", "SECRET"), ("SECRET", "ID")])
def test_half_of_the_credentials_is_an_error_that_names_the_missing_half(
    stkai: GlobalSettings, env: pytest.MonkeyPatch, there: str, missing: str
) -> None:
    env.setenv(f"STKAI_AUTH_CLIENT_{there}", SECRET)
    said = refusal(stkai)
    assert said.startswith(f"STKAI_AUTH_CLIENT_{missing} is missing, but STKAI_AUTH_CLIENT_{there} is set")
    assert SECRET not in said


def test_client_id_and_secret_may_come_from_two_sources(
    stkai: GlobalSettings, env: pytest.MonkeyPatch
) -> None:
    assert not stkai.config.auth.has_credentials()
    env.setenv("STKAI_AUTH_CLIENT_ID", "id")
    stkai.configure(auth={"client_secret": SECRET})
    assert stkai.config.auth.has_credentials()
    assert stkai.config.auth.client_secret == SecretStr(SECRET)


def test_a_token_comes_from_the_environment_and_loses_its_white_space(
    stkai: GlobalSettings, env: pytest.MonkeyPatch
) -> None:
    env.setenv("STKAI_AUTH_TOKEN", f" {SECRET}\n")
    env.setenv("STKAI_AUTH_TOKEN_URL", "https://idm.example/token")
    assert stkai.config.auth.token == SecretStr(SECRET)
    assert not stkai.config.auth.has_credentials()
    assert row(stkai, "STKAI_AUTH_TOKEN") == Explained("STKAI_AUTH_TOKEN", MASK, "environment")


def test_a_token_beside_credentials_is_an_error_that_names_both(
    stkai: GlobalSettings, env: pytest.MonkeyPatch
) -> None:
    env.setenv("STKAI_AUTH_CLIENT_ID", "id")
    env.setenv("STKAI_AUTH_CLIENT_SECRET", SECRET)
    with pytest.raises(
        ConfigurationError, match="STKAI_AUTH_TOKEN is set, and so are STKAI_AUTH_CLIENT_ID"
    ) as caught:
        stkai.configure(auth={"token": SECRET})
    assert SECRET not in str(caught.value)
    stkai.configure(auth={"token": SECRET, "client_id": None, "client_secret": None})
    assert stkai.config.auth.token == SecretStr(SECRET)


@pytest.mark.parametrize(
    "token", [f"Bearer {SECRET}", f"{SECRET}\r\nX: 1", f"{SECRET}é", "", 7, [SECRET]], ids=repr
)
def test_a_token_that_cannot_be_a_header_is_an_error_that_does_not_show_it(
    stkai: GlobalSettings, token: Any
) -> None:
    with pytest.raises(
        ConfigurationError, match=r"STKAI_AUTH_TOKEN or configure\(auth=.* must be visible ASCII"
    ) as caught:
        stkai.configure(auth={"token": token})
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__}"


# Direct construction


def test_a_section_created_directly_does_not_read_the_environment(env: pytest.MonkeyPatch) -> None:
    env.setenv("STKAI_RATE_LIMIT_MAX_REQUESTS", "7")
    assert RateLimitConfig(time_window=1).max_requests == 100
    assert Settings(rate_limit=RateLimitConfig(max_requests=5)).rate_limit.max_requests == 5


def made(model: type[Any], **values: object) -> Any:
    """A section from values that a type checker would reject."""
    return model(**values)


def test_a_section_created_directly_accepts_a_path_and_one_origin() -> None:
    assert made(HttpConfig, verify=Path(__file__)).verify == __file__
    assert made(AuthConfig, origins="https://a.example").origins == ("https://a.example",)


@pytest.mark.parametrize(
    ("model", "values", "said"),
    [
        (
            RateLimitConfig,
            {"max_requests": 0},
            "RateLimitConfig.max_requests is 0; it must be a positive whole number",
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


@pytest.mark.parametrize("field", ["max_requests", "time_window"])
def test_a_token_bucket_without_numbers_is_refused(field: str) -> None:
    with pytest.raises(ConfigurationError, match="a token bucket needs max_requests and time_window"):
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


@pytest.mark.parametrize(
    "store",
    [None, "file", "file:///var/x", "redis://host:6379/0", "rediss://host", "unix:///run/redis", Lending()],
)
def test_a_share_accepts_a_store_of_each_known_kind(store: object) -> None:
    config = made(RateLimitConfig, share="team", store=store)
    assert (config.share, config.store) == ("team", store)


@pytest.mark.parametrize(
    "store", ["", "files", "mysql://h", "redis:", "/var/x", 7, b"file", Lending, object()]
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
    ],
)
def test_a_warm_start_that_could_not_keep_its_promise_is_refused(
    stkai: GlobalSettings, others: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        stkai.configure(rate_limit={"strategy": "adaptive", "warm_start": "key", **others})
    assert stkai.config.rate_limit.warm_start is None


# Secrets, and what is shown


def everything_said(stkai: GlobalSettings) -> str:
    return f"{stkai.explain(str)} {stkai.config!r} {stkai.config} {stkai.provenance()!r} {stkai!r}"


def test_secrets_are_shown_nowhere(stkai: GlobalSettings) -> None:
    stkai.configure(
        auth={"client_id": "id", "client_secret": SECRET},
        rate_limit={"share": "s", "store": f"redis://:{SECRET}@host/0"},
        http={"proxy": f"http://user:{SECRET}@proxy:3128"},
    )
    assert SECRET not in everything_said(stkai)
    assert row(stkai, "STKAI_AUTH_CLIENT_SECRET").value == MASK
    assert row(stkai, "STKAI_HTTP_PROXY").value == f"http://{MASK}@proxy:3128"
    assert row(stkai, "STKAI_RATE_LIMIT_STORE").value == f"redis://{MASK}@host/0"


def test_a_token_is_shown_nowhere(stkai: GlobalSettings) -> None:
    stkai.configure(auth={"token": SECRET})
    assert SECRET not in everything_said(stkai)


def test_a_password_in_the_url_of_the_token_endpoint_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="without a user name or password") as caught:
        AuthConfig(token_url=f"https://user:{SECRET}@idm.example/token")
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert f"https://{MASK}@idm.example/token" in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"auth": {"client_secret": [SECRET], "client_id": "id"}},
        {"auth": {"client_secrt": SECRET}},
        {"auth": {"client_id": {"secret": SECRET}}},
        {"auth": {"origins": [f"https://user:{SECRET}@host"]}},
        {"auth": {"token_url": f"ftp://user:{SECRET}@host"}},
        {"auth": {"token_url": f"https://user:{SECRET}@host"}},
        {"rate_limit": {"store": f"redis://:{SECRET}@host"}},
        {"rate_limit": {"store": f"mysql://:{SECRET}@host"}},
        {"http": {"proxy": f"ftp://user:{SECRET}@host"}},
        {"http": {"proxy": f"user:{SECRET}@host"}},
    ],
)
def test_errors_do_not_show_secrets(stkai: GlobalSettings, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        stkai.configure(**bad)
    error: BaseException | None = caught.value
    while error is not None:  # a traceback prints the causes too
        assert SECRET not in str(error)
        error = error.__cause__


@given(st.text(), st.text(), st.sampled_from(["http", "socks5"]))
def test_masking_hides_everything_before_the_host(user: str, password: str, scheme: str) -> None:
    assert masked(f"{scheme}://{user}:{password}@host:1") == f"{scheme}://{MASK}@host:1"
    assert masked(f"_{user}:{password}@host:1") == f"{MASK}@host:1"
    assert masked("https://host/path") == "https://host/path"


def test_explain_is_a_table_of_all_rows(stkai: GlobalSettings, env: pytest.MonkeyPatch) -> None:
    env.setenv("STKAI_RATE_LIMIT_ENABLED", "true")
    head, *lines = stkai.explain(str).splitlines()
    assert head.split() == ["variable", "value", "source"]
    assert len(lines) == len(stkai.provenance())
    assert ["STKAI_RATE_LIMIT_ENABLED", "true", "environment"] in [line.split() for line in lines]
    assert {line.index(line.split()[1]) for line in lines} == {head.index("value")}


def test_an_unknown_variable_gives_one_warning_and_is_explained_without_its_value(
    stkai: GlobalSettings, env: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    env.setenv("STKAI_AUTH_CLIENT_SECRT", SECRET)
    env.setenv("STKAI_RETRY_ZZZ", "1")
    env.setenv("STKAI_RATE_LIMITS_ENABLED", "true")
    env.setenv("stkai_http", "1")
    with caplog.at_level(logging.WARNING, logger="stkai"):
        _ = stkai.config
        explained = stkai.explain(str)
    ignored = "is ignored (environment, not a setting of stkai"
    assert caplog.messages == [
        f"STKAI_AUTH_CLIENT_SECRT {ignored}; did you mean STKAI_AUTH_CLIENT_SECRET?)",
        f"STKAI_HTTP {ignored})",
        f"STKAI_RATE_LIMITS_ENABLED {ignored}; did you mean STKAI_RATE_LIMIT_ENABLED?)",
        f"STKAI_RETRY_ZZZ {ignored})",
    ]
    for name in ("STKAI_AUTH_CLIENT_SECRT", "STKAI_RATE_LIMITS_ENABLED", "STKAI_RETRY_ZZZ", "STKAI_HTTP "):
        assert name in explained
    assert SECRET not in explained


def test_an_unknown_variable_in_a_file_is_reported_with_the_file(
    stkai: GlobalSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "x.env"
    file.write_text("STKAI_RATELIMIT_ENABLED=true\nOTHER=1\nSTKAI_EMPTY=\n")
    stkai.configure(env_file=file)
    with caplog.at_level(logging.WARNING, logger="stkai"):
        _ = stkai.config
    (message,) = caplog.messages
    assert message == (
        f"STKAI_RATELIMIT_ENABLED is ignored (.env file {file}, not a setting of stkai;"
        " did you mean STKAI_RATE_LIMIT_ENABLED?)"
    )


def test_explain_prints_the_table_or_passes_its_lines_to_a_function(
    stkai: GlobalSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []
    assert stkai.explain(lines.append).splitlines() == lines
    assert capsys.readouterr().out == ""
    assert stkai.explain() == "\n".join(lines)
    assert capsys.readouterr().out.splitlines() == lines


seconds = st.floats(min_value=0.001, max_value=1e9)
statuses = st.lists(st.integers(100, 599), max_size=5).map(tuple)
retries = st.builds(
    RetryConfig,
    enabled=st.booleans(),
    max_retries=st.integers(0, 1000),
    initial_delay=seconds,
    retry_on_status_codes=statuses,
    deadline=st.none() | seconds,
    idempotency_header=st.none() | st.sampled_from(["Idempotency-Key", "x~1"]),
)
limits = st.builds(
    RateLimitConfig,
    strategy=st.sampled_from(["token_bucket", "adaptive"]),
    max_wait_time=st.none() | seconds,
    penalty_factor=st.none() | st.floats(0.001, 0.999),
)


@given(retries, limits)
def test_the_values_that_explain_shows_can_be_set_as_variables(
    retry: RetryConfig, rate_limit: RateLimitConfig
) -> None:
    rows = load({"retry": dict(retry), "rate_limit": dict(rate_limit)}).rows
    shown = {each.variable: each.value for each in rows if "_AUTH_" not in each.variable}
    with mock.patch.dict(os.environ, shown):
        assert load({}).settings == Settings(retry=retry, rate_limit=rate_limit)


# The process-wide settings


def test_there_is_one_instance_per_process() -> None:
    STKAI.configure(http={"max_connections": 3})
    assert STKAI.config.http.max_connections == 3
    STKAI.reset()
    assert repr(STKAI) == "STKAI"


def test_importing_the_settings_does_not_import_pydantic() -> None:
    code = "import sys, stkai._config.stkai; sys.exit('pydantic' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
