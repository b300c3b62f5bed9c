"""Puts the stand-in for StackSpot CLI where stkai finds it, and takes it away again."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parent / "stand_in_oscli"


@contextmanager
def installed(place: Path = PLACE) -> Iterator[Any]:
    """Make StackSpot CLI, or another package named `oscli` at `place`, importable; yields the CLI's HTTP module."""
    _forget()
    sys.path.insert(0, str(place))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module("oscli.core.http") if place == PLACE else None
    finally:
        sys.path.remove(str(place))
        _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "oscli"]:
        del sys.modules[name]
