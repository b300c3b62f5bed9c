"""JSON as text: parts are passed on as written, to preserve numbers, escapes and the order of keys."""

import json
import math
import re
from typing import Any, Final, NamedTuple

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_UNSAFE: Final = re.compile("[\n\r\x7f-\x9f\u2028\u2029]")
"""Line breaks, and characters that terminals interpret. In valid JSON the first two occur only between tokens."""


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
    """One JSON value, without surrounding whitespace. A ValueError says where it is not JSON."""
    start = _skip(text, 0)
    value, end = _scan(text, start)
    if _skip(text, end) != len(text):
        raise ValueError(f"there is more after the end of the JSON, at column {_skip(text, end) + 1}")
    return Part(value, text[start:end])


def members(text: str) -> dict[str, Part] | None:
    """The members of a JSON object, the last one of duplicates; None for any other JSON."""
    if not isinstance(parse(text).value, dict):
        return None
    found: dict[str, Part] = {}
    place = _skip(text, text.index("{") + 1)
    while text[place] != "}":
        name, place = _scan(text, place)
        start = _skip(text, _skip(text, place) + 1)  # After the colon.
        value, place = _scan(text, start)
        found[name] = Part(value, text[start:place])
        place = _skip(text, place)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return found


def _scan(text: str, place: int) -> tuple[Any, int]:
    try:
        return _LENIENT.raw_decode(text, place)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return place if found is None else found.end()


def quote_inside(text: str) -> str:
    """Text escaped for use inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def one_line(text: str) -> str:
    """Valid JSON without line breaks, and without characters that a terminal interprets."""
    if _UNSAFE.search(text) is None:
        return text
    return _UNSAFE.sub(lambda found: " " if found[0] in "\r\n" else f"\\u{ord(found[0]):04x}", text)
