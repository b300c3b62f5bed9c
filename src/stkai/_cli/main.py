"""The command `stkai`: a demonstration on an embedded server, and an explanation of the configuration in force."""

import sys


def main() -> None:
    """Run the command line; says what to install where the extra `cli` is missing."""
    try:
        from .commands import app
    except ModuleNotFoundError as error:
        sys.exit(f'stkai: {error.name} is missing; the command line needs: pip install "stkai[cli]"')
    app()


if __name__ == "__main__":
    main()
