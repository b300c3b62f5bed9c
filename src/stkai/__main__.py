"""`python -m stkai` is the command `stkai`."""

from ._cli.main import main

if __name__ == "__main__":
    main()
