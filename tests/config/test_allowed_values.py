"""What each setting allows, and the errors for anything else."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from stkai._config import GlobalSettings
from stkai._config.sources import MODELS, Explained
from stkai._errors import ConfigurationError
from stkai._secrets import MASK

from ..support.settings import SECRET, refusal, row

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
    ("STKAI_RATE_LIMIT_ENABLED", "true ", True),
    ("STKAI_RATE_LIMIT_STRATEGY", "adaptive\r", "adaptive"),
    ("STKAI_RATE_LIMIT_WARM_START", "team key\n", "team key"),
    ("STKAI_RATE_LIMIT_WARM_START", "none", None),
    ("STKAI_RETRY_RETRY_TIMEOUTS", "yes", True),
    ("STKAI_RETRY_RETRY_ON_STATUS_CODES", "503", (503,)),
    ("STKAI_RETRY_RETRY_ON_STATUS_CODES", "429, 503", (429, 503)),
    ("STKAI_RETRY_RETRY_ON_STATUS_CODES", "[429, 503]", (429, 503)),
    ("STKAI_RETRY_RETRY_ON_STATUS_CODES", "[]", ()),
    ("STKAI_RETRY_DEADLINE", "2.5", 2.5),
    ("STKAI_RETRY_MAX_DELAY", "0", 0.0),
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
    ("STKAI_AUTH_ORIGINS", "[" * 5000, "separated by commas"),
    ("STKAI_AUTH_ORIGINS", ",", "origins"),
    ("STKAI_AUTH_TOKEN_URL", "/token", "a URL (http:// or https://)"),
    ("STKAI_AUTH_CLIENT_AUTH", "header", "'body' or 'basic'"),
    ("STKAI_AUTH_REFRESH_MARGIN", "-1", "a non-negative number of seconds"),
    ("STKAI_RATE_LIMIT_ENABLED", "maybe", "true or false"),
    ("STKAI_RATE_LIMIT_STRATEGY", "fixed", "'token_bucket' or 'adaptive'"),
    ("STKAI_RATE_LIMIT_MAX_REQUESTS", "0", "a positive whole number"),
    ("STKAI_RATE_LIMIT_MAX_REQUESTS", "1.5", "a positive whole number"),
    ("STKAI_RATE_LIMIT_METHODS", "'POST'", "names of HTTP methods"),
    ("STKAI_RATE_LIMIT_SHARE", '"team"', "a name without quotes"),
    ("STKAI_RATE_LIMIT_WARM_START", "True", "other than true, false"),
    ("STKAI_RATE_LIMIT_STORE", "memcached://host", "'file', a URL (file:///dir, redis://"),
    ("STKAI_RATE_LIMIT_STORE", "files", "redis://"),
    ("STKAI_RATE_LIMIT_STORE_TIMEOUT", "0", "a positive number of seconds"),
    ("STKAI_RATE_LIMIT_TIME_WINDOW", "inf", "a positive number of seconds"),
    ("STKAI_RATE_LIMIT_TIME_WINDOW", "unlimited", "a positive number of seconds"),
    ("STKAI_RATE_LIMIT_MAX_WAIT_TIME", "0", "or 'unlimited'"),
    ("STKAI_RATE_LIMIT_MIN_RATE_FLOOR", "0", "above 0 and at most 1"),
    ("STKAI_RATE_LIMIT_PENALTY_FACTOR", "1.5", "above 0 and at most 1"),
    ("STKAI_RATE_LIMIT_RECOVERY_FACTOR", "nan", "at most 1"),
    ("STKAI_RETRY_MAX_RETRIES", "-1", "a non-negative whole number"),
    ("STKAI_RETRY_INITIAL_DELAY", "soon", "a non-negative number of seconds"),
    ("STKAI_RETRY_RETRY_ON_STATUS_CODES", "429,99", "from 100 to 599"),
    ("STKAI_RETRY_RETRY_ON_STATUS_CODES", "429;503", "separated by commas"),
    ("STKAI_RETRY_RETRY_ON_STATUS_CODES", ",", "separated by commas"),
    ("STKAI_RETRY_DEADLINE", "0", "a positive number of seconds, or 'none'"),
    ("STKAI_RETRY_IDEMPOTENCY_HEADER", "Idempotency Key", "a header name"),
    ("STKAI_RETRY_IDEMPOTENCY_HEADER", "Authorization", "a header name that carries nothing else"),
    ("STKAI_RETRY_IDEMPOTENCY_HEADER", "'Idempotency-Key'", "a header name"),
    ("STKAI_RETRY_IDEMPOTENCY_HEADER", "false", "a header name"),
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
    shown = repr(text) if len(text) < 200 else f"{text!r:.200}..."
    assert said.startswith(f"{variable} (environment) is {shown}; it must be ")
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
        ("x" * 100_000, f"'{'x' * 199}..."),
    ],
)
def test_a_refused_argument_of_configure_is_named_with_its_variable(
    stkai: GlobalSettings, value: object, shown: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        stkai.configure(rate_limit={"max_requests": value})
    assert str(caught.value) == (
        "STKAI_RATE_LIMIT_MAX_REQUESTS or configure(rate_limit={'max_requests': ...}) "
        f"is {shown}; it must be a positive whole number, or 'none'"
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
    "token",
    [f"Bearer {SECRET}", f"{SECRET}\r\nX: 1", f"{SECRET}é", f'"{SECRET}"', f"'{SECRET}'", "", 7, [SECRET]],
    ids=repr,
)
def test_a_token_that_cannot_be_a_header_is_an_error_that_does_not_show_it(
    stkai: GlobalSettings, token: Any
) -> None:
    with pytest.raises(
        ConfigurationError, match=r"STKAI_AUTH_TOKEN or configure\(auth=.* must be visible ASCII"
    ) as caught:
        stkai.configure(auth={"token": token})
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__}"
