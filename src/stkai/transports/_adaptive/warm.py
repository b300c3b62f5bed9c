"""Saves a limiter's rate, with its age, in a small file in the user's cache directory."""

import contextlib
import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..._clock import Clock, SystemClock
from ..._errors import ConfigurationError

_BELIEVED = 86400.0
"""Seconds after which a saved rate no longer says anything about the present."""

CAUTION = 0.8
"""Share of the saved rate to start at, because others may have joined."""


@dataclass(slots=True)
class Learned:
    """A rate in requests per second, and the window of its quota in seconds; 0.0 while nothing is known."""

    rate: float = 0.0
    window: float = 0.0


class Memory:
    """Keeps what a limiter learned in a file. A file that cannot be read or written is ignored.

    Args:
        name: the quota's name; limiters with the same name start where the last one ended.

    Raises:
        ConfigurationError: the name is not text, or is empty.
    """

    def __init__(self, name: str, clock: Clock | None = None) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(
                f"warm_start must be the name of a quota, a non-empty string, not {name!r}"
            )
        self.path = _cache_directory() / "stkai" / "adaptive" / f"{quote(name, safe='')[:200]}.json"
        self._clock = clock or SystemClock()

    def recall(self) -> Learned | None:
        """What was learned in the last day, or None."""
        try:
            found = json.loads(self.path.read_text())
            rate, window = float(found["rate"]), float(found["window"])
            age = self._clock.utcnow().timestamp() - float(found["saved"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        sensible = 0 < rate < math.inf and 0 < window < math.inf and 0 <= age < _BELIEVED
        return Learned(rate, window) if sensible else None

    def keep(self, learned: Learned) -> None:
        """Save what was learned, if anything."""
        if not learned.rate:
            return
        saved = self._clock.utcnow().timestamp()
        text = json.dumps({"rate": learned.rate, "window": learned.window, "saved": saved})
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent)
            with os.fdopen(handle, "w") as file:
                file.write(text)
            Path(temporary).replace(self.path)


def _cache_directory() -> Path:
    """The cache directory of the XDG base directory specification; on Windows, the local application data."""
    given = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return Path(given) if given else Path.home() / ".cache"
