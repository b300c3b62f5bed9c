"""Test ids that are the same in every process, as pytest-xdist requires."""

import re


def spelled(value: object) -> str:
    """The representation of a parameter, without the address of an object."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
