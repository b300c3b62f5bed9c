"""Stdin on its way into a file, as fast as it comes, so that a resumed job finds it there."""

import os
import threading
from pathlib import Path
from typing import Final

from .._errors import StkaiError
from .append_file import AppendFile

_BLOCK: Final = 1 << 16


class Spool:
    """Copies a descriptor into a file, in a thread of its own, which ends with the process.

    Attributes:
        path: of the file.
        is_complete: all has been copied, or the copying failed.
        error: why it failed.
    """

    def __init__(self, path: Path, descriptor: int = 0) -> None:
        self.path = path
        self.is_complete = False
        self.error: StkaiError | None = None
        self._file, self._descriptor = AppendFile(path), descriptor

    def start(self) -> None:
        """Begin to copy."""
        threading.Thread(target=self._copy, name="stkai.batch.stdin", daemon=True).start()

    def _copy(self) -> None:
        try:
            while block := os.read(self._descriptor, _BLOCK):
                self._file.append(block)
            self._file.sync()
        except StkaiError as error:
            self.error = error
        except OSError:
            pass  # A stdin that is closed has nothing more to say.
        finally:
            self.is_complete = True
