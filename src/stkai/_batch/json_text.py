"""JSON as text: parts are passed on as written, to preserve numbers, escapes and the order of keys; and templates."""

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from .._errors import ConfigurationError

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_UNSAFE: Final = re.compile("[\n\r\x7f-\x9f\u2028\u2029]")
"""Line breaks, and characters that terminals obey. In valid JSON the first two occur only between tokens."""

_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_COLON: Final = re.compile(r"[ \t\n\r]*:")
_PLACEHOLDER: Final = re.compile(r"\{([^{}\n]{1,200})\}")
_NAME: Final = re.compile(r"[\w.-]+")
"""In braces, this is always a placeholder; any other text only if it is a column or a member of the line."""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _whole(text: str) -> float:
    # Not int, which refuses more than some thousand digits.
    return int(text) if len(text) < 300 else math.inf


_LENIENT: Final = json.JSONDecoder(parse_float=float, parse_int=_whole, parse_constant=_no_constant)
"""For user input, which is sent on as text."""

STRICT: Final = json.JSONDecoder(parse_float=_finite, parse_int=_whole, parse_constant=_no_constant)
"""For answers: values that some parsers cannot read back do not count as JSON."""


class Part(NamedTuple):
    """A value and its original JSON text."""

    value: Any
    text: str


def parse(text: str) -> Part:
    """One JSON value, without surrounding whitespace.

    Raises:
        ValueError: it is not JSON; says where.
    """
    start = _skip(text, 0)
    value, end = _scan(text, start)
    if _skip(text, end) != len(text):
        raise ValueError(f"there is more after the end of the JSON, at column {_skip(text, end) + 1}")
    return Part(value, text[start:end])


def members(text: str) -> dict[str, Part] | None:
    """The members of a JSON object, the last one of duplicates; None for any other JSON.

    Raises:
        ValueError: it is not JSON; says where.
    """
    place = _skip(text, 0)
    if not text.startswith("{", place):
        parse(text)
        return None
    try:
        found = _walk(text, _skip(text, place + 1))
    except (ValueError, IndexError):
        found = None
    if found is None:
        parse(text)  # Raises with the standard library's message.
        raise ValueError("it is not valid")
    return found


def _walk(text: str, place: int) -> dict[str, Part] | None:
    """The members, from the first one on; None if anything else is in between."""
    found: dict[str, Part] = {}
    while text[place] != "}" or found:
        if text[place] != '"':
            return None
        name, place = _scan(text, place)
        place = _skip(text, place)
        if text[place] != ":":
            return None
        start = _skip(text, place + 1)
        value, end = _scan(text, start)
        found[name] = Part(value, text[start:end])
        place = _skip(text, end)
        if text[place] != ",":
            break
        place = _skip(text, place + 1)
    return found if text[place] == "}" and _skip(text, place + 1) == len(text) else None


def _scan(text: str, place: int) -> tuple[Any, int]:
    try:
        return _LENIENT.raw_decode(text, place)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return place if found is None else found.end()


def dump(value: Any) -> str:
    """A Python value as ASCII JSON."""
    return json.dumps(value)


def quote_inside(text: str) -> str:
    """Text escaped for use inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def one_line(text: str) -> str:
    """Valid JSON without line breaks, and without characters that a terminal obeys."""
    if _UNSAFE.search(text) is None:
        return text
    return _UNSAFE.sub(lambda found: " " if found[0] in "\r\n" else f"\\u{ord(found[0]):04x}", text)


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
        """The template in a file.

        Raises:
            ConfigurationError: it cannot be read, or is not JSON.
        """
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

        Raises:
            KeyError: a value is missing.
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
