"""Reads the settings from all their sources, checks them, and says which source each value came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from .._errors import ConfigurationError
from .messages import as_text, closest, configuration_error, problems
from .models import AuthConfig, HttpConfig, RateLimitConfig, RetryConfig, Settings
from .stkai import full_path

SECTIONS: dict[str, type[BaseModel]] = {
    "auth": AuthConfig,
    "rate_limit": RateLimitConfig,
    "retry": RetryConfig,
    "http": HttpConfig,
}

Values = Mapping[str, Mapping[str, Any]]
"""Section, field, value."""


class _Environment(BaseSettings):
    """Tells pydantic-settings the names of the variables.

    It is never made: its sources are asked one by one, to know which of them a value came from.
    """

    model_config = SettingsConfigDict(
        env_prefix="STKAI_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        env_ignore_empty=True,
        enable_decoding=False,
    )
    env_file: str | None = None
    auth: AuthConfig = AuthConfig()
    rate_limit: RateLimitConfig = RateLimitConfig()
    retry: RetryConfig = RetryConfig()
    http: HttpConfig = HttpConfig()


@dataclass(frozen=True, slots=True)
class Explained:
    """One setting in force.

    Attributes:
        variable: the environment variable that sets it.
        value: its value as text; of a secret, only that there is one.
        source: "configure", "environment", ".env file PATH" or "default".
    """

    variable: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings in force, a row for each of them, and a warning for each variable that means nothing."""

    settings: Settings
    rows: tuple[Explained, ...]
    warnings: tuple[str, ...]


def load(configured: Values, env_file: Path | None = None) -> Loaded:
    """Merge all sources and check the result.

    Raises:
        ConfigurationError: lists everything that is wrong.
    """
    environment = _read(EnvSettingsSource(_Environment))
    sources: dict[str, Values] = {"environment": environment}
    rows: list[Explained] = []
    named_by = "configure" if env_file else "environment"
    if named := env_file or environment.pop("env_file", None):
        path = full_path(named)
        sources = {f".env file {path}": _read_file(path, named_by), **sources}
        rows.append(Explained("STKAI_ENV_FILE", str(path), named_by))

    complaints: list[str] = []
    sections: dict[str, Any] = {}
    for section in SECTIONS:
        try:
            sections[section], found = _section(section, {**sources, "configure": configured})
            rows += found
        except ConfigurationError as error:
            complaints += error.args
    if complaints:
        raise configuration_error(complaints)
    ignored = _ignored(sources)
    return Loaded(
        Settings(**sections),
        (*rows, *ignored),
        tuple(f"{row.variable} is ignored ({row.source})" for row in ignored),
    )


def _section(section: str, sources: Mapping[str, Values]) -> tuple[BaseModel, list[Explained]]:
    """One section from all sources, the strongest last. The arguments of its error are the complaints."""
    model = SECTIONS[section]
    given = {
        field: (source, value)
        for source, values in sources.items()
        for field, value in values.get(section, {}).items()
        if field in model.model_fields or source == "configure"
    }

    def name(field: str) -> str:
        variable, argument = _variable(section, field), f"configure({section}={{{field!r}: ...}})"
        if field not in model.model_fields:
            return argument
        source = given[field][0]
        return f"{variable} or {argument}" if source == "configure" else f"{variable} ({source})"

    values = {field: value for field, (_, value) in given.items()}
    try:
        made = model(**values)
    except ConfigurationError as error:
        cause = cast("ValidationError", error.__cause__)
        raise ConfigurationError(*problems(model, values, cause, name)) from cause
    return made, [
        Explained(
            _variable(section, field),
            as_text(field, getattr(made, field)),
            given[field][0] if field in given else "default",
        )
        for field in model.model_fields
    ]


def _ignored(sources: Mapping[str, Values]) -> list[Explained]:
    """The variables that look like settings and are none. No values: one may be a mistyped secret."""
    rows = []
    for source, values in sources.items():
        for section, model in SECTIONS.items():
            for field in values.get(section, {}):
                if field not in model.model_fields:
                    hint = closest(field, model.model_fields)
                    advice = f"; did you mean {_variable(section, hint)}?" if hint else ""
                    rows.append(
                        Explained(
                            _variable(section, field), "ignored", f"{source}, not a setting of stkai{advice}"
                        )
                    )
    return rows


def _variable(section: str, field: str) -> str:
    return f"STKAI_{section}_{field}".upper()


def _read(source: EnvSettingsSource) -> dict[str, Any]:
    """What one source holds: section, field, text.

    A variable with the name of a whole section (STKAI_AUTH) would hide the section's fields, and a line
    without "=" in a file has no value: neither counts.
    """
    whole = {f"stkai_{section}" for section in SECTIONS}
    source.env_vars = {name: value for name, value in source.env_vars.items() if value and name not in whole}
    return source()


def _read_file(path: Path, named_by: str) -> dict[str, Any]:
    where = "STKAI_ENV_FILE" if named_by == "environment" else "configure(env_file=...)"
    try:
        if path.is_file():
            return _read(DotEnvSettingsSource(_Environment, env_file=path, env_file_encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{where} names {str(path)!r}, which cannot be read: {error}") from error
    raise ConfigurationError(f"{where} names {str(path)!r}, and there is no such file; correct or unset it")
