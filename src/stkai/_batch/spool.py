"""Copies stdin to a file as it arrives, so that a resumed job can read it there."""

import os
import threading
from pathlib import Path
from typing import Final

from .._errors import StkaiError
from .append_file import AppendFile

_BLOCK: Final = 1 << 16


class Spool:
    """Copies a descriptor to a file, in a daemon thread.

    Attributes:
        path: the file's path.
        is_complete: everything was copied, or copying failed.
        error: the reason if copying failed.
    """

    def __init__(self, path: Path, descriptor: int = 0) -> None:
        self.path = path
        self.is_complete = False
        self.error: StkaiError | None = None
        self._file, self._descriptor = AppendFile(path), descriptor

    def start(self) -> None:
        """Start copying."""
        threading.Thread(target=self._copy, name="stkai.batch.stdin", daemon=True).start()

    def _copy(self) -> None:
        try:
            while block := os.read(self._descriptor, _BLOCK):
                self._file.append(block)
            self._file.sync()
        except StkaiError as error:
            self.error = error
        except OSError:
            pass  # stdin was closed: there is nothing more to read.
        finally:
            self.is_complete = True
