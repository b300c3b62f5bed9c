"""What errors and `explain` show: never a secret."""

import logging
import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai._config import GlobalSettings
from stkai._config.models import AuthConfig, HttpConfig, RateLimitConfig, RetryConfig, Settings
from stkai._config.sources import load
from stkai._errors import ConfigurationError
from stkai._secrets import MASK
from stkai._urls import mask_credentials

from ..support.settings import SECRET, row


def everything_said(stkai: GlobalSettings) -> str:
    return f"{stkai.explain(str)} {stkai.config!r} {stkai.config} {stkai.provenance()!r} {stkai!r}"


def test_secrets_are_shown_nowhere(stkai: GlobalSettings) -> None:
    stkai.configure(
        auth={"client_id": "id", "client_secret": SECRET},
        rate_limit={"share": "s", "store": f"redis://:{SECRET}@host/0"},
        http={"proxy": f"http://user:{SECRET}@proxy:3128"},
    )
    config = stkai.config
    assert SECRET not in f"{everything_said(stkai)} {config.model_dump()} {config.model_dump_json()}"
    assert HttpConfig(**config.http.model_dump()) == config.http
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


@given(st.text(), st.text(), st.sampled_from(["http", "socks5"]))
def test_masking_hides_everything_before_the_host(user: str, password: str, scheme: str) -> None:
    assert mask_credentials(f"{scheme}://{user}:{password}@host:1") == f"{scheme}://{MASK}@host:1"
    assert mask_credentials(f"_{user}:{password}@host:1") == f"{MASK}@host:1"
    assert mask_credentials("https://host/path") == "https://host/path"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:1/0?password=s3cret&db=2", f"redis://host:1/0?password={MASK}&db=2"),
        ("unix:///tmp/redis?db=1&PassWord=s3cret", f"unix:///tmp/redis?db=1&PassWord={MASK}"),
        ("redis://user:s3cret", f"redis://user:{MASK}"),
        ("redis://user:6s3cret/0", f"redis://user:{MASK}/0"),
        ("https://a:443,https://b", "https://a:443,https://b"),
        ("https://[::1]:443/token?tenant=x", "https://[::1]:443/token?tenant=x"),
    ],
)
def test_masking_hides_passwords_in_the_query_and_where_a_port_should_be(url: str, shown: str) -> None:
    assert mask_credentials(url) == shown


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


def test_an_error_also_names_the_variables_that_are_probably_misspelled(
    stkai: GlobalSettings, env: pytest.MonkeyPatch
) -> None:
    env.setenv("STKAI_AUTH_CLIENT_ID", "me")
    env.setenv("STKAI_AUTH_CLIENT_SECRETS", SECRET)
    env.setenv("STKAI_ZZZ", "1")
    with pytest.raises(ConfigurationError) as raised:
        _ = stkai.config
    heading, missing, misspelled = str(raised.value).splitlines()
    assert heading == "1 setting cannot be used:"
    assert "STKAI_AUTH_CLIENT_SECRET is missing" in missing
    assert misspelled.endswith("did you mean STKAI_AUTH_CLIENT_SECRET?)")
    assert SECRET not in str(raised.value)


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
    penalty_factor=st.none() | st.floats(0.001, 1),
)


@given(retries, limits)
def test_the_values_that_explain_shows_can_be_set_as_variables(
    retry: RetryConfig, rate_limit: RateLimitConfig
) -> None:
    rows = load({"retry": dict(retry), "rate_limit": dict(rate_limit)}).rows
    shown = {each.variable: each.value for each in rows if "_AUTH_" not in each.variable}
    with mock.patch.dict(os.environ, shown):
        assert load({}).settings == Settings(retry=retry, rate_limit=rate_limit)
