"""The command `stkai`, run in this process."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import typer.main
import typer.testing

from stkai._cli import app

# To make its parsers takes longer than most of its runs.
vars(typer.testing)["_get_command"] = cache(typer.main.get_command)


def invoke(arguments: Sequence[str], env: Mapping[str, str | None]) -> Any:
    """Run it with these arguments and these changes of the environment."""
    return typer.testing.CliRunner().invoke(app, arguments, env=env)
