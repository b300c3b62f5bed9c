"""What is known about each line of an input, in one byte per line."""

from typing import Final

NEW: Final = 0
"""Not sent, or refused: a resumed job sends it."""
SENT: Final = 1
"""Sent, and no outcome is known."""
DONE: Final = 2
"""Its answer is in the output."""
FAILED: Final = 3
"""Its failure is in the failure output."""


class Fates:
    """A fate for each number; those never set are new."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __getitem__(self, number: int) -> int:
        return self._bytes[number] if number < len(self._bytes) else NEW

    def __setitem__(self, number: int, fate: int) -> None:
        missing = number + 1 - len(self._bytes)
        if missing > 0:
            self._bytes.extend(bytes(missing))
        self._bytes[number] = fate

    def all_with(self, fate: int) -> list[int]:
        """The numbers with this fate, ascending."""
        return [number for number, value in enumerate(self._bytes) if value == fate]
