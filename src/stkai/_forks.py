"""What a forked child must not inherit: locks held by its parent's threads, and connections that its parent uses.

Two processes that write to one connection get each other's answers; a lock whose holder was not forked is never freed.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

_renewals: "WeakKeyDictionary[Any, Callable[[Any], None]]" = WeakKeyDictionary()


def after_fork(thing: T, renew: Callable[[T], None]) -> None:
    """Call `renew(thing)` in every child that is forked while `thing` lives."""
    _renewals[thing] = renew


def begin_in_each_process(thing: T, begin: Callable[[T], None]) -> None:
    """Call `begin(thing)` here, and in every child that is forked while `thing` lives."""
    begin(thing)
    after_fork(thing, begin)


_parents: list[object] = []


def never_finalize(thing: object) -> None:
    """Keep what belongs to an event loop of the parent: in a child, finalizing it would touch that loop."""
    _parents.append(thing)


def _renew_all() -> None:
    with warnings.catch_warnings():
        # Dropping sockets here closes them in the child only; they stay open in the parent.
        warnings.simplefilter("ignore", ResourceWarning)
        for thing, renew in list(_renewals.items()):
            renew(thing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
