"""How the commands show their usage: `stkai batch [OPTIONS] INPUT`, where Typer writes braces."""

import re
from typing import Any

from typer.core import TyperCommand


class PlainUsage(TyperCommand):
    """A command whose usage names its arguments without braces, and leaves out the name of a default command."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        pieces = [re.sub(r"[{}]", "", piece) for piece in self.collect_usage_pieces(ctx)]
        usage = " ".join(pieces).replace("......", "...")
        formatter.write_usage(ctx.command_path.strip(), usage)
