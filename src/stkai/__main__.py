"""`python -m stkai` is the command `stkai`."""

from .cli import main

if __name__ == "__main__":
    main()
