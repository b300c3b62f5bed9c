"""Errors that concern a batch as a whole."""

import os
from pathlib import Path

from .._errors import ConfigurationError, StkaiError


class OutcomeUnknownError(StkaiError):
    """The request was in flight when an earlier run ended; the server may have acted on it. It was not sent again."""


class UsageError(ConfigurationError):
    """The command was used wrongly, and nothing was sent. The message says what to change."""


class WriteError(StkaiError):
    """A file of the batch could not be written, for example because the disk is full.

    Attributes:
        path: of the file.
        reason: what the system said.
    """

    def __init__(self, path: Path | str, error: OSError) -> None:
        self.path = path
        self.reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"{path} cannot be written: {self.reason}")


class DroppedError(StkaiError):
    """The run ended before this request was sent; a resumed job sends it."""

    def __init__(self) -> None:
        super().__init__("the run is ending")
