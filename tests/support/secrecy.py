"""What other people's tools would show of an error: traceback formatters, error trackers, pickles."""

import pickle
import traceback
from collections.abc import Iterator

from rich.pretty import pretty_repr


def shown_by(error: BaseException, *, own: str = "") -> str:
    """The text of an error, and the variables of its frames, as reprs and taken apart.

    Args:
        own: a file whose frames are left out: those of the test itself, which holds what it passes.
    """
    lines = [str(error), repr(error), pickle.dumps(error).decode("latin-1")]
    for each in _chain(error):
        lines += traceback.TracebackException.from_exception(each).format()
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if frame.f_code.co_filename != own:
                lines += [f"{value!r} {pretty_repr(value)}" for value in frame.f_locals.values()]
    return "\n".join(lines)


def _chain(error: BaseException) -> Iterator[BaseException]:
    below: BaseException | None = error
    while below is not None:
        yield below
        below = below.__cause__ or (None if below.__suppress_context__ else below.__context__)
