"""Bodies from a template: replaces `{name}` inside its strings after parsing, so that values need no escaping."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .errors import UsageError
from .json_text import Part, parse, quote_inside

_PLACEHOLDER: Final = re.compile(r"\{([\w.-]+)\}")
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_COLON: Final = re.compile(r"[ \t\n\r]*:")


class Template:
    """A JSON document with placeholders in its string values.

    Attributes:
        names: the placeholders' names, in order.
        text: the original document.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: list[str] = []
        self._pieces: list[tuple[str, str | None]] = []
        """Literal text, and the name of the value that follows it."""
        start, kept = 0, ""
        for found in _STRING.finditer(text):
            if _COLON.match(text, found.end()) is None:
                kept += text[start : found.start()]
                start = found.end()
                kept = self._split(found[0], kept)
        self._pieces.append((kept + text[start:], None))

    def _split(self, string: str, kept: str) -> str:
        """Split one string at its placeholders; returns the text before the next one."""
        value: str = parse(string).value
        if _PLACEHOLDER.search(value) is None:
            return kept + string
        kept += '"'
        place = 0
        for found in _PLACEHOLDER.finditer(value):
            self._pieces.append((kept + quote_inside(value[place : found.start()]), found[1]))
            self.names.append(found[1])
            kept, place = "", found.end()
        return kept + quote_inside(value[place:]) + '"'

    @classmethod
    def read(cls, path: Path) -> "Template":
        """The template in a file.

        Raises:
            UsageError: it cannot be read, or is not JSON.
        """
        try:
            text = path.read_text("utf-8-sig")
            parse(text)
        except OSError as error:
            msg = f"the template {path} cannot be read: {error.strerror}"
            raise UsageError(msg) from error
        except ValueError as error:
            msg = f"the template {path} is not JSON in UTF-8: {error}"
            raise UsageError(msg) from error
        return cls(text.strip())

    def fill(self, values: Mapping[str, Part]) -> str:
        """The document with the values filled in: strings as text, everything else as JSON.

        Raises:
            KeyError: a value is missing.
        """
        filled: list[str] = []
        for text, name in self._pieces:
            filled.append(text)
            if name is not None:
                value, written = values[name]
                filled.append(quote_inside(value if isinstance(value, str) else written))
        return "".join(filled)
