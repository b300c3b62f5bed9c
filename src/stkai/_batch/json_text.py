"""JSON as text: values are passed on as written, to preserve numbers, escapes and the order of keys.

The template of `--body` is such a text, with placeholders that each line fills.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from .._errors import ConfigurationError

_UNSAFE: Final = re.compile("[\n\r\x7f-\x9f\u2028\u2029]")
"""Line breaks, and characters that terminals interpret. In valid JSON, line breaks occur only between tokens."""

_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_COLON: Final = re.compile(r"[ \t\n\r]*:")
_NAME_OF_MEMBER: Final = re.compile(r'[ \t\n\r,]*("(?:[^"\\]|\\.)*")[ \t\n\r]*:[ \t\n\r]*')
_PLACEHOLDER: Final = re.compile(r"\{([^{}]+)\}")
_NAME: Final = re.compile(r"[\w.-]+")
"""In braces, such a name is always a placeholder; other text is one only if it is a column or a member of the line."""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large a number")
    return value


# `int` refuses a few thousand digits or more.
_LENIENT: Final = json.JSONDecoder(parse_int=float, parse_constant=_no_constant)
"""For user input, which is sent on as text."""

STRICT: Final = json.JSONDecoder(parse_float=_finite, parse_int=float, parse_constant=_no_constant)
"""For answers: values that some parsers cannot read back do not count as JSON."""


class JsonValue(NamedTuple):
    """A value and its original JSON text."""

    value: Any
    text: str


def members(text: str) -> dict[str, JsonValue] | None:
    """The members of a JSON object, the last of duplicates; None for any other JSON.

    Raises a ValueError, or a RecursionError for deep nesting.
    """
    if not isinstance(_LENIENT.decode(text), dict):
        return None
    found: dict[str, JsonValue] = {}
    end = text.index("{") + 1
    while name := _NAME_OF_MEMBER.match(text, end):
        key, _ = _LENIENT.raw_decode(text, name.start(1))
        value, end = _LENIENT.raw_decode(text, name.end())
        found[key] = JsonValue(value, text[name.end() : end])
    return found


def one_line(text: str) -> str:
    """Valid JSON without line breaks, and without characters that a terminal interprets."""
    if _UNSAFE.search(text) is None:
        return text
    return _UNSAFE.sub(lambda found: " " if found[0] in "\r\n" else f"\\u{ord(found[0]):04x}", text)


class Template:
    """A JSON document with `{name}` placeholders in its string values, replaced after parsing: values need no escaping.

    Every line must fill `names`. Other text in braces is a placeholder only for lines that have a member of that name.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._pieces: list[tuple[str, str]] = []
        """Pairs: text to keep, and the value of the string with placeholders that follows it."""
        self._found = list[str]()  # All text in braces.
        start = 0
        for found in _STRING.finditer(text):
            value: str = _LENIENT.decode(found[0])
            if _COLON.match(text, found.end()) is None and _PLACEHOLDER.search(value) is not None:
                self._pieces.append((text[start : found.start()], value))
                self._found += _PLACEHOLDER.findall(value)
                start = found.end()
        self._rest = text[start:]
        self.names = list(filter(_NAME.fullmatch, self._found))

    @classmethod
    def read(cls, path: Path) -> "Template":
        try:
            text = path.read_text("utf-8-sig")
            _LENIENT.decode(text)
        except UnicodeError as error:
            msg = f"the template {path} is not in UTF-8: save the file as UTF-8"
            raise ConfigurationError(msg) from error
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"the template {path} is not JSON: {error}") from error
        return cls(text.strip())

    def use_columns(self, columns: Collection[str]) -> None:
        """Add the placeholders for columns whose names contain spaces."""
        self.names = [name for name in self._found if name in columns or _NAME.fullmatch(name)]

    def fill(self, values: Mapping[str, JsonValue]) -> str:
        """Fill in the values: strings as text, everything else as JSON. Raises a KeyError that names a missing one."""

        def replaced(found: re.Match[str]) -> str:
            name = found[1]
            if name in values:
                value, written = values[name]
                return value if isinstance(value, str) else written
            if name in self.names:
                raise KeyError(name)
            return found[0]

        filled = (
            kept + json.dumps(_PLACEHOLDER.sub(replaced, value), ensure_ascii=False)
            for kept, value in self._pieces
        )
        return "".join(filled) + self._rest
