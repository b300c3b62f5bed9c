"""Reads the settings from all their sources, checks them, and records which source each value came from."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource

from .._errors import ConfigurationError
from .._secrets import Secret, reveal
from .._urls import full_path
from .fields import none_from_word, problems
from .models import Settings
from .names import PREFIX, as_text, closest, configuration_error, variable

MODELS: Final[dict[str, Any]] = {name: field.annotation for name, field in Settings.model_fields.items()}
"""The model of each section."""

_ENV_FILE: Final = f"{PREFIX}ENV_FILE"
_OTHER_FORMATS: Final = frozenset({".cfg", ".ini", ".json", ".toml", ".yaml", ".yml"})

_KNOWN: Final = {
    _ENV_FILE,
    *(variable(section, field) for section, model in MODELS.items() for field in model.model_fields),
}
"""The environment variables that stkai reads."""

Variables = Mapping[str, Secret]
"""The variables of one source that have the prefix of settings."""


class Explained(NamedTuple):
    variable: str  # The environment variable that sets it.
    value: str  # As text; for a secret, only whether it is set.
    source: str  # "configure", "environment", ".env file PATH" or "default".


class Loaded(NamedTuple):
    """The settings in force, a row for each of them, and a warning for each ignored variable."""

    settings: Settings
    rows: tuple[Explained, ...]
    warnings: tuple[str, ...]


def load(configured: Mapping[str, Mapping[str, Any]], env_file: Path | None = None) -> Loaded:
    """Merge all sources and check the result; the error lists everything that is wrong."""
    environment = _read(EnvSettingsSource(BaseSettings))
    sources = {"environment": environment}
    rows: list[Explained] = []
    named_by = "configure" if env_file else "environment"
    if named := env_file or reveal(environment.get(_ENV_FILE)):
        path = full_path(named)
        sources = {f".env file {path}": _read_file(path, named_by), **sources}
        rows.append(Explained(_ENV_FILE, str(path), named_by))

    errors: list[str] = []
    sections: dict[str, Any] = {}
    for section in MODELS:
        try:
            sections[section], found = _section(section, sources, configured.get(section, {}))
            rows += found
        except ConfigurationError as error:
            errors += error.args
    ignored = [row for source, names in sources.items() for row in _ignored(source, names)]
    warnings = tuple(f"{row.variable} is ignored ({row.source})" for row in ignored)
    if errors:  # A misspelled variable may be the cause.
        raise configuration_error(errors, [each for each in warnings if "did you mean" in each])
    return Loaded(Settings(**sections), (*rows, *ignored), warnings)


def _section(
    section: str, sources: Mapping[str, Variables], configured: Mapping[str, Any]
) -> tuple[BaseModel, list[Explained]]:
    """One section from all sources; later ones take precedence. The arguments of the error are what is wrong."""
    model = MODELS[section]
    given = {
        field: (source, _as_none(field, variables[variable(section, field)]))
        for source, variables in sources.items()
        for field in model.model_fields
        if variable(section, field) in variables
    }
    given |= {field: ("configure", value) for field, value in configured.items()}

    def name(field: str) -> str:
        argument = f"configure({section}={{{field!r}: ...}})"
        if field not in model.model_fields:
            return argument
        source = given[field][0]
        return f"{variable(section, field)} {f'or {argument}' if source == 'configure' else f'({source})'}"

    values = {field: value for field, (_, value) in given.items()}
    try:
        made = model(**values)
    except ConfigurationError as error:
        cause = cast("ValidationError", error.__cause__)
        raise ConfigurationError(*problems(model, values, cause, name)) from cause
    return made, [
        Explained(
            variable(section, field),
            as_text(field, getattr(made, field)),
            given[field][0] if field in given else "default",
        )
        for field in model.model_fields
    ]


def _as_none(field: str, value: Any) -> Any:
    """The value of a variable; None if it says "none" for a name. (In Python, "none" may be a real name.)"""
    return none_from_word(reveal(value)) if field in ("share", "warm_start") else value


def _ignored(source: str, names: Collection[str]) -> list[Explained]:
    """Variables of a source that have the prefix but are not settings; without values, which may be secret."""
    rows = []
    for name in sorted(set(names) - _KNOWN):
        hint = closest(name.removeprefix(PREFIX), (known.removeprefix(PREFIX) for known in _KNOWN))
        advice = f"; did you mean {PREFIX}{hint}?" if hint else ""
        rows.append(Explained(name, "ignored", f"{source}, not a setting of stkai{advice}"))
    return rows


def _read(source: EnvSettingsSource) -> Variables:
    # White space around a value is a line break at the end of a file, or comes from the shell. An empty variable counts
    # as unset, as does a line without "=" in a file.
    there = {name.upper(): (value or "").strip() for name, value in source.env_vars.items()}
    return {name: Secret(value) for name, value in there.items() if value and name.startswith(PREFIX)}


def _read_file(path: Path, named_by: str) -> Variables:
    where = f"{_ENV_FILE if named_by == 'environment' else 'configure(env_file=...)'} names {str(path)!r}"
    try:
        if not path.is_file():
            raise ConfigurationError(f"{where}, and there is no such file; correct or unset it")
        variables = _read(DotEnvSettingsSource(BaseSettings, env_file=path, env_file_encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        advice = "; save the file as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        # Not `from error`, which contains the whole file.
        raise ConfigurationError(f"{where}, which cannot be read: {error}{advice}") from None
    if path.suffix.lower() in _OTHER_FORMATS and not variables:
        raise ConfigurationError(
            f"{where}, which sets nothing: a .env file has lines such as {PREFIX}RETRY_MAX_RETRIES=5, without sections"
        )
    return variables
