"""Writes outcomes to stdout, one line each, when there are no output files."""

import os
from collections import deque
from typing import Final

from .errors import WriteError
from .fates import DONE, FAILED

_STDOUT: Final = 1


class Stdout:
    """Writes every outcome to stdout, as calls finish or in input order.

    Attributes:
        counts: the numbers of answers and failures.
        held: how many outcomes are waiting for an earlier one.
    """

    def __init__(self, *, in_order: bool, descriptor: int = _STDOUT) -> None:
        self.counts = {DONE: 0, FAILED: 0}
        self._in_order, self._descriptor = in_order, descriptor
        self._expected: deque[int] = deque()
        self._entries: dict[int, bytes] = {}

    @property
    def held(self) -> int:
        return len(self._entries)

    def expect(self, number: int) -> None:
        """Expect an outcome for this line."""
        if self._in_order:
            self._expected.append(number)

    def drop(self, number: int) -> None:
        """Stop expecting an outcome for this line."""
        if self._in_order:
            self._expected.remove(number)
            self._flush()

    def append(self, fate: int, number: int, entry: bytes) -> None:
        """Write an outcome, or keep it until its turn comes.

        Raises:
            WriteError: the reader is gone, or the disk is full.
        """
        self.counts[fate] += 1
        if not self._in_order:
            self._write(entry)
            return
        self._entries[number] = entry
        self._flush()

    def _flush(self) -> None:
        while self._expected and self._expected[0] in self._entries:
            self._write(self._entries.pop(self._expected.popleft()))

    def _write(self, entry: bytes) -> None:
        try:
            left = memoryview(entry)
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            raise WriteError("stdout", error) from error

    def sync(self) -> None:
        """Do nothing: the reader already has the lines."""

    def sort(self) -> None:
        """Do nothing: the lines are already in order."""

    def close(self) -> None:
        """Do nothing: stdout stays open."""
