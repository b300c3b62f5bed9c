"""What a forked child must not inherit: locks held by threads of its parent, and connections its parent uses.

Two processes that share a connection get each other's responses; a lock whose holder was not forked is never released.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

_renewals: "WeakKeyDictionary[Any, Callable[[Any], None]]" = WeakKeyDictionary()


def after_fork(thing: T, renew: Callable[[T], None]) -> T:
    """Call `renew(thing)` first in every child that is forked while `thing` exists; returns `thing`."""
    _renewals[thing] = renew
    return thing


def _renew_all() -> None:
    with warnings.catch_warnings():
        # Sockets dropped here are closed in the child only; the parent keeps them open.
        warnings.simplefilter("ignore", ResourceWarning)
        for thing, renew in list(_renewals.items()):
            renew(thing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
