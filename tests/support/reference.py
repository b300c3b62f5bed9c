"""Extracts the facts from the text of StackSpot's HTTP client API reference: classes, methods, parameters, defaults."""

import ast
import re
from pathlib import Path

REQUIRED = "required"

Facts = dict[str, dict[str, dict[str, str]]]
"""By class or function, by method, by parameter: the default as source text, or `REQUIRED`."""


def read(path: Path) -> Facts:
    """The facts in a reference that was saved as text."""
    facts: Facts = {}
    lines = path.read_text().splitlines()
    owner, method = "", "__init__"
    for number, line in enumerate(lines):
        heading = re.fullmatch(r"(\w+) ¶", line) or re.fullmatch(r"(get|post|get_access_token)", line)
        if heading:
            is_class = any(text.startswith("Bases: ") for text in lines[number + 1 : number + 4])
            if is_class or heading[1].startswith("create_") or not owner:
                owner = heading[1]
                facts[owner] = {}
            method = "__init__" if is_class else heading[1]
            if not is_class and method != owner:
                facts[owner].setdefault(method, {})
        elif line == "| Name | Type | Description | Default |":
            facts[owner].setdefault(method, {}).update(_table(lines[number + 2 :]))
        elif signature := re.fullmatch(r"(\w+)\((self, )?(.*)\)( -> .*)?", line):
            facts[owner].setdefault(signature[1], {}).update(_signature(signature[3]))
    return facts


def _table(lines: list[str]) -> dict[str, str]:
    """The rows of a parameter table: apart from bars, each line is a cell, up to the first line outside the table."""
    cells = [cell for line in lines if (cell := line.strip("| ").strip())]
    rows = zip(cells[0::4], cells[3::4], strict=False)
    found: dict[str, str] = {}
    for name, default in rows:
        if not re.fullmatch(r"[a-z_]+", name):
            break
        found[name] = default
    return found


def _signature(text: str) -> dict[str, str]:
    (function,) = ast.parse(f"def f({text}): pass").body
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    given = [REQUIRED] * (len(arguments.args) - len(arguments.defaults))
    defaults = given + [ast.unparse(default) for default in arguments.defaults]
    return {argument.arg: default for argument, default in zip(arguments.args, defaults, strict=True)}
