"""The template of `--body`: its placeholders, whether columns fill them, and the text that a line makes of it."""

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from .._errors import ConfigurationError
from .json_text import Part, parse, quote_inside

_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_COLON: Final = re.compile(r"[ \t\n\r]*:")
_PLACEHOLDER: Final = re.compile(r"\{([^{}\n]{1,200})\}")
_NAME: Final = re.compile(r"[\w.-]+")
"""In braces, this is always a placeholder; any other text only if it is a column or a member of the line."""

_WORD: Final = re.compile(r"\w+")
_NO_NAME: Final = re.compile(r"[\"':,;=<>\\]")
"""Text in braces with one of these is JSON or code, not the name of a column."""


class Template:
    """A JSON document with `{name}` placeholders in its string values, replaced after parsing: values need no escaping.

    Args:
        text: the document.
        columns: names that every line must fill although they contain spaces or other characters.

    Attributes:
        names: the names of placeholders that every line must fill.
        optional: other texts in braces; a placeholder for those lines that have a member of that name.
    """

    def __init__(self, text: str, columns: Collection[str] = ()) -> None:
        self.text = text
        self._pieces: list[tuple[str, str | None]] = []
        """Literal text, and the name of the value that follows it."""
        start, kept = 0, ""
        for found in _STRING.finditer(text):
            if _COLON.match(text, found.end()) is None:
                kept += text[start : found.start()]
                start = found.end()
                kept = self._split(found[0], kept)
        self._pieces.append((kept + text[start:], None))
        names = [name for _, name in self._pieces if name is not None]
        self.names = [name for name in names if name in columns or _NAME.fullmatch(name)]
        self.optional = [name for name in names if name not in self.names]

    def _split(self, string: str, kept: str) -> str:
        """Split one string at its placeholders; returns the text before the next one."""
        value: str = parse(string).value
        start = 0
        for found in _PLACEHOLDER.finditer(value):
            self._pieces.append(
                (kept + '"' * (not start) + quote_inside(value[start : found.start()]), found[1])
            )
            kept, start = "", found.end()
        return kept + quote_inside(value[start:]) + '"' if start else kept + string

    @classmethod
    def read(cls, path: Path) -> "Template":
        """The template in a file."""
        try:
            text = path.read_text("utf-8-sig")
            if "\0" in text:
                raise UnicodeError  # UTF-16 without a mark.
            parse(text)
        except OSError as error:
            raise ConfigurationError(f"the template {path} cannot be read: {error.strerror}") from error
        except UnicodeError as error:
            msg = f"the template {path} is not in UTF-8: save the file as UTF-8"
            raise ConfigurationError(msg) from error
        except ValueError as error:
            raise ConfigurationError(f"the template {path} is not JSON: {error}") from error
        return cls(text.strip())

    def fill(self, values: Mapping[str, Part]) -> str:
        """The document with the values filled in: strings as text, everything else as JSON.

        A KeyError names a value that is missing.
        """
        filled: list[str] = []
        for text, name in self._pieces:
            filled.append(text)
            if name is None:
                continue
            if name in values:
                value, written = values[name]
                filled.append(quote_inside(value if isinstance(value, str) else written))
            elif name in self.optional:
                filled.append(quote_inside(f"{{{name}}}"))
            else:
                raise KeyError(name)
        return "".join(filled)


def check_placeholders(path: Path, columns: list[str], template: Template, *, is_csv: bool) -> None:
    """Refuse a placeholder that no column fills, and text in braces that looks like the name of a column."""
    unknown = [name for name in template.names if is_csv and name not in columns]
    unknown += [text for text in template.optional if _resembles(text, columns)]
    if unknown:
        names = ", ".join(columns)
        hint = "" if unknown[0] in template.names else f" (to send it as it is, write {{ {unknown[0]} }})"
        raise ConfigurationError(
            f"the template uses {{{unknown[0]}}}, but {path} has no such column{hint}; it has: {names}"
        )


def _resembles(text: str, columns: list[str]) -> bool:
    """Whether text in braces is probably the name of a column, misspelt."""
    if _NO_NAME.search(text) or text != text.strip():
        return False
    plain = ["".join(_WORD.findall(name.casefold())) for name in [text, *columns]]
    words = [
        set(filter(lambda word: len(word) > 2, _WORD.findall(name.casefold()))) for name in [text, *columns]
    ]
    return bool(get_close_matches(plain[0], plain[1:], 1, 0.75) or words[0] & set[str]().union(*words[1:]))
