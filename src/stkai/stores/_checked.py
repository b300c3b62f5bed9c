"""Refuses the answer of a store that makes no sense, before a limiter computes with it."""

import math

from ._protocol import Law, Lease

_NUMBERS = ("count", "wait", "spacing", "pause", "rate", "epoch", "members", "quota", "burst", "next")
_LEAST = {"count": 0, "wait": -1, "spacing": 0, "pause": 0, "members": 1}


def checked(lease: object) -> Lease:
    """The store's answer, if a limiter can use it.

    Raises:
        TypeError: it is no lease, or something in it is not a number.
        ValueError: a number is out of range.
    """
    if (
        not isinstance(lease, Lease)
        or not isinstance(lease.law, Law)
        or not isinstance(lease.law.memory, str)
    ):
        raise TypeError(f"the store must answer with a Lease that holds a Law, not {lease!r:.200}")
    for name in _NUMBERS:
        _check(name, getattr(lease, name), _LEAST.get(name, -math.inf))
    for name in ("rate", "burst", "version", "age"):
        _check(f"law.{name}", getattr(lease.law, name), -math.inf)
    if lease.rate <= 0 or lease.law.rate <= 0:
        raise ValueError(
            f"the store answered with a rate of {min(lease.rate, lease.law.rate)!r}; it must be positive"
        )
    if lease.count != int(lease.count):
        raise ValueError(f"the store answered with {lease.count!r} permits; it must be a whole number")
    return lease


def _check(name: str, value: object, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"the store answered with {name}={value!r:.50}; it must be a number")
    if not least <= value < math.inf or value == -math.inf:
        raise ValueError(
            f"the store answered with {name}={value!r}; it must be finite, and at least {least:g}"
        )
