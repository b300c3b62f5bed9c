"""Saves the rate that a limiter has learned, with the time, in a small file in the user's cache directory."""

import json
import math
import os
import stat
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from ..._clock import Clock, SystemClock, unique_key
from ..._errors import ConfigurationError
from ..._event_loops import in_thread
from ..._log import logger
from ..._urls import file_name
from .._operations import Run
from .limiter import Answer
from .pace.quota import MAX_RATE_AGE, LearnedRate

_SAVE_INTERVAL: Final = 60.0  # Seconds between two saves while the program runs.
_MAX_SIZE: Final = 1000  # The most bytes to read; a saved rate takes a tenth of that.

# Larger values mean that the file is damaged.
_MAX_RATE: Final = 1e5  # Requests per second.
_MAX_WINDOW: Final = 366 * 86400.0  # Seconds.
_MAX_FINDING: Final = 50  # Characters.

_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT: Final = getattr(os, "O_NONBLOCK", 0)


def check_warm_start(name: object, share: str | None, *, plain: bool) -> None:
    """Check that `name` is valid, and that there is something to save under it."""
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(f"warm_start must be the name of a quota, a non-empty string, not {name!r}")
    if not name.isprintable():
        raise ConfigurationError(f"warm_start must be text that can be printed, not {name!r}")
    if plain:
        raise ConfigurationError(
            "warm_start cannot be combined with penalty_factor or recovery_factor: plain AIMD starts at the whole quota"
        )
    if share is not None and name != share:
        raise ConfigurationError(
            f"warm_start={name!r} must be the name of the share, {share!r}: its store keeps one rate for the group"
        )


class SavedRate:
    """A file with what a limiter has learned, saved at exit, and once a minute in case the program is killed.

    A file that cannot be used is not an error: the limiter then starts cold.
    """

    def __init__(self, name: str, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        directory = _cache_directory()  # None if this user has none.
        self.path = None if directory is None else directory / "stkai" / "adaptive" / file_name(name, ".json")
        self._unsaved: tuple[LearnedRate, datetime] | None = None
        self._due = -math.inf
        self._has_limit = self._has_warned = False
        if self.path is None:
            self._warn("warm_start: this user has no home directory")

    def read(self) -> LearnedRate | None:
        """What was learned within the last day, or None."""
        if self.path is None:
            return None
        try:
            text = _read(self.path)
            if text is None:
                return None
            found = _parsed(text, self._clock.utcnow().timestamp())
        except OSError as error:
            self._warn(f"warm_start: cannot read {str(self.path)!r}: {error}")
            return None
        if found is None:
            logger.info("warm_start: %s holds no rate from the last day; starting cold", self.path)
        else:
            logger.info("warm_start: %.3g requests per second, saved %.0f s ago", found.rate, found.age)
        return found

    def note(self, learned: LearnedRate, answer: Answer, before: Run | None = None) -> Run | None:
        """Record what an answer taught, without I/O; returns the operation that saves it if saving is due, or `before`.

        Saving is due after the first refusal, and when a minute has passed since the last time. The operation begins
        with `before`, which saves what another limiter has learned from the same answer.
        """
        self._unsaved = learned, answer.date()
        if answer.now < self._due and learned.refused <= self._has_limit:
            return before
        self._due, self._has_limit = answer.now + _SAVE_INTERVAL, learned.refused
        return Run(partial(self._save, before), partial(self._asave, before))

    def save(self) -> None:
        """Save what was recorded last, unless it is saved. Concurrent readers always find a complete file."""
        noted, self._unsaved = self._unsaved, None
        if noted is not None:
            self.write(*noted)

    def write(self, learned: LearnedRate, saved: datetime) -> None:
        if self.path is None:
            return
        content = learned._asdict() | {"saved": saved.timestamp()}
        del content["age"]
        try:
            _replace(self.path, json.dumps(content).encode())
        except OSError as error:
            self._warn(f"warm_start: cannot save the rate in {str(self.path)!r}: {error}")

    def _save(self, before: Run | None, left: float) -> None:
        if isinstance(before, Run):
            before.sync(left)
        self.save()

    async def _asave(self, before: Run | None, left: float) -> None:
        await in_thread(partial(self._save, before, left), abandon_on_cancel=True)

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("%s; set XDG_CACHE_HOME to a directory that can be written", reason)


def _parsed(text: bytes, now: float) -> LearnedRate | None:
    """What the text contains, if it is valid and not too old."""
    try:
        content: Any = json.loads(text)
        rate, window, saved = (float(content[name]) for name in ("rate", "window", "saved"))
        refused = bool(content["refused"])
        finding = str(content.get("finding", ""))
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return None
    found = LearnedRate(rate, window, refused, now - saved, finding)
    sensible = 0 < rate <= _MAX_RATE and 0 < window <= _MAX_WINDOW and 0 <= found.age < MAX_RATE_AGE
    sensible = sensible and finding.isprintable() and len(finding) <= _MAX_FINDING
    return found if sensible else None


def _read(path: Path) -> bytes | None:
    """The first `_MAX_SIZE` bytes of a regular file; None if it does not exist."""
    try:
        # Do not follow a symbolic link, and do not wait for a FIFO's writer.
        handle = os.open(path, os.O_RDONLY | _NO_FOLLOW | _NO_WAIT)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError("it is not a regular file")
        return os.read(handle, _MAX_SIZE)
    finally:
        os.close(handle)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{unique_key()}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _cache_directory() -> Path | None:
    """The cache directory of the XDG base directory specification; on Windows, the local application data."""
    given = [os.environ.get("XDG_CACHE_HOME"), os.environ.get("LOCALAPPDATA") if os.name == "nt" else None]
    for directory in given:
        # The specification says to ignore a relative path.
        if directory and Path(directory).is_absolute():
            return Path(directory)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # Containers often run as a user without a password entry or home directory.
        return None
