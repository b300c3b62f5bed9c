"""The command `stkai`, or `python -m stkai`."""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line, or say what to install if a package of the extra `cli` is missing."""
    is_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_interruptible:
        signal.signal(signal.SIGINT, _end)
    try:
        from ._cli import app
    except ModuleNotFoundError as error:
        sys.exit(f'stkai: {error.name} is missing; the command line needs: pip install "stkai[cli]"')
    finally:
        if is_interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(sys.stdout, "reconfigure"):  # Escape characters that its encoding lacks, as stderr does.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        sys.exit(f"stkai: {error.strerror}")


def _end(number: int, _: FrameType | None) -> None:
    """Exit at once. An exception would show a traceback, and might be swallowed while pydantic is being imported."""
    os._exit(128 + number)


if __name__ == "__main__":
    main()
