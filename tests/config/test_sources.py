"""Where values come from: the order of the sources, and files that cannot be read."""

from pathlib import Path

import pytest

from stkai._config import STKAI, GlobalSettings
from stkai._config.models import AuthConfig, HttpConfig, RateLimitConfig, Settings
from stkai._config.names import DEFAULT_TOKEN_URL
from stkai._config.sources import MODELS, Explained
from stkai._errors import ConfigurationError

from ..support.settings import refusal, row


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
    said = refusal(stkai)
    assert "STKAI_ENV_FILE names" in said
    assert said.endswith("; save the file as UTF-8") == isinstance(content, bytes)


def test_a_file_in_the_home_of_an_unknown_user_is_an_error(stkai: GlobalSettings) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        stkai.configure(env_file="~no-such-user-here/x.env")


@pytest.mark.parametrize("blank", ["", " \t", "\n"], ids=repr)
def test_an_empty_variable_counts_as_unset(
    stkai: GlobalSettings, env: pytest.MonkeyPatch, blank: str
) -> None:
    for each in stkai.provenance():
        env.setenv(each.variable, blank)
    env.setenv("STKAI_ENV_FILE", blank)
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


# Files that cannot be .env files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.toml", 'max_retries = 5\n[retry]\ninitial_delay = "1"\n'),
        ("x.json", '{"retry": {"max_retries": 5}}'),
        ("x.yaml", "retry:\n  max_retries: 5\n"),
        ("x.toml", ""),
    ],
)
def test_a_file_of_another_format_in_which_nothing_can_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    monkeypatch.setenv("STKAI_ENV_FILE", str(path))
    with pytest.raises(
        ConfigurationError, match=r"^STKAI_ENV_FILE names .*, which sets nothing: a .env file has lines"
    ):
        STKAI.config  # noqa: B018
    monkeypatch.delenv("STKAI_ENV_FILE")
    with pytest.raises(ConfigurationError, match=r"^configure\(env_file=...\) names .*, which sets nothing"):
        STKAI.configure(env_file=path)


@pytest.mark.parametrize(
    "text", ["", "# later\n", "OTHER=1\nexport MORE=2\n\nEMPTY=\nALONE\n", "STKAI_RETRY_MAX_RETRIES=5\n[x]\n"]
)
def test_an_env_file_may_set_nothing_of_ours(tmp_path: Path, text: str) -> None:
    path = tmp_path / ".env"
    path.write_text(text)
    expected = 5 if "STKAI" in text else 3
    assert STKAI.configure(env_file=path).retry.max_retries == expected
