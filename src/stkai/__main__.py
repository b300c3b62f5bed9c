"""The command `stkai`, also `python -m stkai`."""

import sys


def main() -> None:
    """Run the command line, or say what to install if a package of the extra `cli` is missing."""
    try:
        from ._cli import app
    except ModuleNotFoundError as error:
        sys.exit(f'stkai: {error.name} is missing; the command line needs: pip install "stkai[cli]"')
    try:
        app()
    except OSError as error:
        sys.exit(f"stkai: {error.strerror}")


if __name__ == "__main__":
    main()
