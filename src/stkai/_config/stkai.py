"""`STKAI`, the settings of this process: `configure()`, the environment and a .env file, read on first use.

Free of pydantic, which would make `import stkai` slow: the models and the reading are imported when wanted.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from .._errors import ConfigurationError
from .._forks import after_fork
from .messages import not_a_setting

if TYPE_CHECKING:
    from .models import Settings
    from .sources import Explained, Loaded

DEFAULT_TOKEN_URL: Final = "https://idm.stackspot.com/stackspot-dev/oidc/oauth/token"  # noqa: S105

_SECTIONS: Final = ("auth", "rate_limit", "retry", "http")

_logger = logging.getLogger("stkai")


class GlobalSettings:
    """The settings of this process. `STKAI` is the only one; safe to share between threads.

    What `configure()` was given wins over the environment, the environment over the .env file (if one is
    named, by `configure()` or by STKAI_ENV_FILE), the file over the defaults.
    """

    def __init__(self) -> None:
        self._renew_lock()
        self._configured: dict[str, dict[str, Any]] = {}
        self._env_file: Path | None = None
        self._loaded: Loaded | None = None
        after_fork(self, GlobalSettings._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = RLock()

    @property
    def config(self) -> "Settings":
        """The settings in force: read on first use, then kept until `configure()` or `reset()`.

        Raises:
            ConfigurationError: lists all that is wrong: the variable, its value and what is allowed.
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
    ) -> None:
        """Set some fields, such as `rate_limit={"enabled": True, "max_requests": 20}`, over other sources.

        Checked at once, together with the environment; if anything is wrong, nothing changes. Fields that an
        earlier call has set, and this one does not mention, stay. None as a field's value sets it to None.
        Clients that exist already keep the settings they were built with.

        Args:
            auth: client_id, client_secret, token_url, origins, refresh_margin, allow_http.
            rate_limit: the fields of `RateLimitConfig`.
            retry: enabled and the fields of `RetryPolicy`.
            http: timeout, verify, proxy, http2 and the limits of the connection pool.
            env_file: a .env file to read as well; it must exist.

        Raises:
            ConfigurationError: an unknown section or field, or a value that is not allowed.
        """
        for section in unknown:
            raise ConfigurationError(
                not_a_setting(f"configure({section}=...)", section, (*_SECTIONS, "env_file"))
            )
        given = dict(zip(_SECTIONS, (auth, rate_limit, retry, http), strict=True))
        with self._lock:
            configured = {
                section: {**self._configured.get(section, {}), **_checked(section, values)}
                for section, values in given.items()
            }
            path = self._env_file if env_file is None else full_path(env_file)
            _load(configured, path)
            self._configured, self._env_file, self._loaded = configured, path, None

    def reset(self) -> None:
        """Forget what `configure()` was given and what was read; the next use reads the environment again."""
        with self._lock:
            self._configured, self._env_file, self._loaded = {}, None, None

    def provenance(self) -> "tuple[Explained, ...]":
        """Each setting in force with the place it came from; then the STKAI_* variables that are ignored."""
        return self._load().rows

    def explain(self) -> str:
        """The settings in force as a table to print: variable, value (secrets masked), where it came from."""
        rows = [
            ("variable", "value", "source"),
            *((r.variable, r.value, r.source) for r in self.provenance()),
        ]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        return "\n".join(f"{row[0]:<{first}}  {row[1]:<{second}}  {row[2]}" for row in rows)

    def _load(self) -> "Loaded":
        with self._lock:
            if self._loaded is not None:
                return self._loaded
            loaded = self._loaded = _load(self._configured, self._env_file)
        for warning in loaded.warnings:
            _logger.warning("%s", warning)
        return loaded

    def __repr__(self) -> str:
        return "STKAI"


def full_path(path: str | os.PathLike[str]) -> Path:
    """The path from the root, so that it stays the same file wherever the process goes."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigurationError(
            f"the .env file {os.fspath(path)!r} is in the home of nobody known here"
        ) from error


def _load(configured: dict[str, dict[str, Any]], env_file: Path | None) -> "Loaded":
    from .sources import load

    return load(configured, env_file)


def _checked(section: str, values: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not all(isinstance(field, str) for field in values):
        raise ConfigurationError(
            f"configure({section}=...) takes a dict of fields and values, not {type(values).__name__}"
        )
    return values


STKAI: Final = GlobalSettings()
"""The settings of this process."""
