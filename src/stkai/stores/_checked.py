"""Refuses a store's answer that makes no sense, before a limiter calculates with it."""

import math

from ._protocol import Lease


def checked(lease: Lease | None) -> Lease:
    """The store's answer, if a limiter can use it.

    Raises:
        ValueError: it is not a lease, or one of its numbers is out of range.
    """
    if lease is None or not _makes_sense(lease):
        raise ValueError(f"the store must answer with a Lease of finite numbers, not {lease!r:.300}")
    return lease


def _makes_sense(lease: Lease) -> bool:
    try:
        law = lease.law
        # If one of them is infinite or not a number, so is the sum.
        total = lease.wait + lease.spacing + lease.pause + lease.rate + lease.epoch + lease.members
        total += lease.quota + lease.burst + lease.next + law.rate + law.burst + law.version + law.age
        return (
            math.isfinite(total)
            and lease.count >= 0
            and lease.count == int(lease.count)
            and lease.wait > -1
            and lease.spacing >= 0
            and lease.pause >= 0
            and lease.rate > 0
            and lease.members >= 1
            and law.rate > 0
            and isinstance(law.memory, str)
        )
    except (TypeError, AttributeError, ValueError, OverflowError):
        return False
