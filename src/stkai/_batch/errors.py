"""What can go wrong with a batch as a whole."""

import os
from pathlib import Path

from .._errors import ConfigurationError, StkaiError


class OutcomeUnknownError(StkaiError):
    """The request was in flight when an earlier run was killed, so the server may have acted on it; not sent again."""


class UsageError(ConfigurationError):
    """The command cannot work as it was given; nothing was sent. The message says what to change."""


class RunningError(UsageError):
    """Another process works on the same job."""


class WriteError(StkaiError):
    """A file of the batch could not be written: the disk is full, say.

    Attributes:
        path: of the file.
        reason: what the system said.
    """

    def __init__(self, path: Path | str, error: OSError) -> None:
        self.path = path
        self.reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"{path} cannot be written: {self.reason}")


class LetGoError(StkaiError):
    """The run ends, and this request was not sent: its turn comes when the job is resumed."""
