"""How the commands show their usage: `stkai batch [OPTIONS] INPUT`, where Typer writes braces and types."""

import re
from typing import Any

from typer import Context
from typer.core import TyperCommand


class _PlainContext(Context):
    @property
    def command_path(self) -> str:
        """The command as it is typed; the name of a default command is empty."""
        return super().command_path.strip()


class PlainUsage(TyperCommand):
    """A command whose usage names its arguments without braces, and leaves out the name of a default command."""

    context_class = _PlainContext

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        pieces = [re.sub(r"[{}]", "", piece) for piece in self.collect_usage_pieces(ctx)]
        formatter.write_usage(ctx.command_path, " ".join(pieces).replace("......", "..."))
