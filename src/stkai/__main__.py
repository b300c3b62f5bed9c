"""The command `stkai`, or `python -m stkai`."""

import signal
import sys


def main() -> None:
    """Run the command line, or say what to install if a package of the extra `cli` is missing."""
    is_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_interruptible:  # Let the system end it: pydantic swallows some exceptions while it is imported.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
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


if __name__ == "__main__":
    main()
