"""`STKAI`, the settings of this process: `configure()`, the environment and a .env file, read on first use.

This module does not import pydantic, which would make `import stkai` slow: the models are imported on first use.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from .._errors import ConfigurationError
from .._lazy import LateModule
from .._log import logger
from .._process import begin_in_each_process
from .._secrets import reveal, sealed
from .._urls import full_path
from .names import SECTIONS, not_a_setting

if TYPE_CHECKING:
    from . import models, sources
    from .models import Settings
    from .sources import Explained, Loaded
else:
    models, sources = LateModule("stkai._config.models"), LateModule("stkai._config.sources")


class GlobalSettings:
    """The settings of this process. `STKAI` is the only instance; safe to share between threads.

    `configure()` takes precedence over the environment, the environment over the .env file (if `configure()` or
    STKAI_ENV_FILE names one), and the file over the defaults.
    """

    keeps_what_it_reads = True

    def __init__(self) -> None:
        begin_in_each_process(self, GlobalSettings._renew_lock)
        self._configured: dict[str, dict[str, Any]] = {}
        self._env_file: Path | None = None
        self._loaded: Loaded | None = None

    def _renew_lock(self) -> None:
        self._lock = RLock()

    @property
    def config(self) -> "Settings":
        """The settings in force: read on first use, then kept until `configure()` or `reset()`.

        Raises:
            ConfigurationError: lists everything that is wrong: the variable, its value and what is allowed.
        """
        return self._load().settings

    def configure(
        self,
        *,
        auth: Mapping[str, Any] | None = None,
        rate_limit: Mapping[str, Any] | None = None,
        retry: Mapping[str, Any] | None = None,
        http: Mapping[str, Any] | None = None,
        env_file: str | os.PathLike[str] | None = None,
        **unknown: Any,
    ) -> "Settings":
        """Set some fields, such as `rate_limit={"max_requests": 20}`, and return the settings in force.

        Everything is checked together with the environment; if anything is wrong, nothing changes. Fields that an
        earlier call set keep their values unless this call sets them again. Passing None for a field sets it to None.
        Existing clients keep the settings that they were built with.

        Args:
            auth: the fields of `AuthConfig`.
            rate_limit: the fields of `RateLimitConfig`.
            retry: the fields of `RetryConfig`.
            http: the fields of `HttpConfig`.
            env_file: a .env file to read as well; it must exist.

        Raises:
            ConfigurationError: an unknown section or field, or a value that is not allowed.
        """
        auth, rate_limit, retry, http, unknown = map(sealed, (auth, rate_limit, retry, http, unknown))
        for section in unknown:
            raise ConfigurationError(
                not_a_setting(f"configure({section}=...)", section, (*SECTIONS, "env_file"))
            )
        given = dict(zip(SECTIONS, (auth, rate_limit, retry, http), strict=True))
        with self._lock:
            configured = {
                section: {**self._configured.get(section, {}), **_as_fields(section, values)}
                for section, values in given.items()
            }
            path = self._env_file if env_file is None else full_path(env_file, "env_file")
            loaded = sources.load(configured, path)
            # Do not keep what was loaded: the environment may change until the first use.
            self._configured, self._env_file, self._loaded = configured, path, None
        return loaded.settings

    def reset(self) -> "Settings":
        """Discard what `configure()` set and what was read, and return the settings from the environment.

        The next use reads the environment again. If it holds an unusable value, that use raises the error, and this
        method returns the defaults.
        """
        with self._lock:
            self._configured, self._env_file, self._loaded = {}, None, None
        try:
            return sources.load({}).settings
        except ConfigurationError:
            return models.Settings()

    def provenance(self) -> "tuple[Explained, ...]":
        """Each setting in force with its source; then the STKAI_* variables that are ignored."""
        return self._load().rows

    def explain(self, output: Callable[[str], object] | None = None) -> str:
        """Print the settings in force as a table, and return it: variable, value (secrets masked), source.

        Args:
            output: called with each line instead of `print`, such as `logging.info`.
        """
        rows = [("variable", "value", "source"), *self.provenance()]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"{row[0]:<{first}}  {row[1]:<{second}}  {row[2]}" for row in rows]
        without_effect = self.config.rate_limit.without_effect()
        if without_effect is not None:
            lines.append(without_effect)
        for line in lines:
            (output or print)(line)
        return "\n".join(lines)

    def _load(self) -> "Loaded":
        with self._lock:
            if self._loaded is not None and self.keeps_what_it_reads:
                return self._loaded
            loaded = self._loaded = sources.load(self._configured, self._env_file)
        for warning in loaded.warnings:
            logger.warning("%s", warning)
        return loaded

    def __repr__(self) -> str:
        return "STKAI"


def _as_fields(section: str, values: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not all(isinstance(field, str) for field in values):
        raise ConfigurationError(
            f"configure({section}=...) takes a dict of fields and values, not"
            f" {'one with other keys' if isinstance(values, Mapping) else type(reveal(values)).__name__}"
            f"{': pass its model_dump()' * hasattr(reveal(values), 'model_dump')}"
        )
    return values


STKAI: Final = GlobalSettings()
"""The settings of this process."""
