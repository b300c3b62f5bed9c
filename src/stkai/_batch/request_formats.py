"""Turns a line of the input into a request: OpenAI's batch format, any object with a template, or a quick command.

JSON stays text: values are passed on as written, to preserve numbers, escapes and the order of keys. The template of
`--body` is such a text, with placeholders that each line fills.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx

from .._errors import ConfigurationError
from .._headers import headers_of
from .._urls import absolute_url

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_BODILESS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})

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


Values = Mapping[str, JsonValue]


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
                if not written:  # A cell of a CSV file.
                    _utf8(value)
                return value if isinstance(value, str) else written
            if name in self.names:
                raise KeyError(name)
            return found[0]

        filled = (
            kept + json.dumps(_PLACEHOLDER.sub(replaced, value), ensure_ascii=False)
            for kept, value in self._pieces
        )
        return "".join(filled) + self._rest


class InvalidLineError(Exception):
    """A line that is not a valid request."""


@dataclass(frozen=True, slots=True)
class Target:
    """The request to send for one line; its body is JSON."""

    method: str
    url: httpx.URL
    content: bytes | None

    def request(self, keys: Mapping[str, str], extensions: dict[str, Any]) -> httpx.Request:
        """The request, with the default headers and those that carry its idempotency key."""
        headers = headers_of(self.method, self.url, None, self.content)
        for name, key in keys.items():
            headers[name] = key
        # Given a stream, httpx does not check the headers again.
        stream = httpx.ByteStream(self.content or b"")
        request = httpx.Request(self.method, self.url, headers=headers, stream=stream, extensions=extensions)
        request.read()
        if self.url.userinfo:  # As httpx's own clients send it.
            next(httpx.BasicAuth(self.url.username, self.url.password).auth_flow(request))
            request.url = self.url.copy_with(userinfo=b"")
        return request


def values_of(raw: bytes) -> Values | None:
    """The members of a line; None if it is JSON but not an object."""
    try:
        text = raw.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        msg = f"this is not UTF-8, from byte {error.start + 1} on: save the file as UTF-8, not compressed"
        raise InvalidLineError(msg) from error
    try:
        return members(text)
    except RecursionError as error:
        raise InvalidLineError("this is nested too deeply for a parser of JSON") from error
    except ValueError as error:
        what = str(error)
        if isinstance(error, json.JSONDecodeError):
            what = f"{error.msg.removesuffix(' at')}, at column {error.colno}"
        raise InvalidLineError(f"this is not JSON ({what}): each line must be one JSON object") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How the lines of an input become requests."""

    base_url: str | None = None  # For relative urls in OpenAI's `{"custom_id", "method", "url", "body"}`.
    url: httpx.URL | None = None  # With a template or a quick command: where all requests are sent instead.
    template: Template | None = None  # Makes the body from any object; without it, the line has a body.
    id_name: str | None = None  # The member to use as the id.

    def custom_id(self, values: Values | None) -> str:
        """The id of a line with these members, as JSON; pass None if the line is not an object."""
        member = None if values is None else values.get(self.id_name or "custom_id")
        if member is not None:
            return member.text or json.dumps(_utf8(member.value).decode())
        if self.id_name is not None:
            raise InvalidLineError(f"this has no {self.id_name!r}, the member that --id-column names")
        return "null"

    def target(self, values: Values | None) -> Target:
        """The request for a line with these members; pass None if the line is not an object."""
        if self.template is not None and self.url is not None:
            return Target("POST", self.url, self._filled(self.template, values))
        if values is None:
            raise InvalidLineError("this is not an object: each line must be one JSON object")
        if self.url is not None:
            return Target("POST", self.url, _body(values, "POST"))
        method = values.get("method", JsonValue("POST", ""))
        name = method.value.upper() if isinstance(method.value, str) else ""
        if name not in _METHODS:
            raise InvalidLineError(f'"method" must be POST or another HTTP method, not {method.text}')
        return Target(name, self._absolute(values.get("url")), _body(values, name))

    def _filled(self, template: Template, values: Values | None) -> bytes:
        try:
            # A truncated text may end in half of an emoji, which JSON can only write in escaped form.
            return template.fill(values or {}).encode(errors="backslashreplace")
        except KeyError as error:
            raise InvalidLineError(f"this has no {error.args[0]!r}, which the template uses") from None

    def _absolute(self, member: JsonValue | None) -> httpx.URL:
        url = None if member is None else member.value
        if not isinstance(url, str) or not url:
            raise InvalidLineError(
                '"url" is missing or not a string: if the lines have another form, pass --body TEMPLATE.json'
            )
        if not is_absolute(url):
            if self.base_url is None:
                raise InvalidLineError(f'"url" is relative ({url}): pass --base-url')
            url = join_url(self.base_url, url)
        try:
            return url_of(url)
        except ValueError as error:
            raise InvalidLineError(f'"url" is not a URL: {error}') from None


def is_absolute(url: str) -> bool:
    return _SCHEME.match(url) is not None


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidLineError("a value is not UTF-8: save the file as UTF-8") from error


def _body(values: Values, method: str) -> bytes | None:
    body = values.get("body")
    if body is not None:
        return body.text.encode()
    if method in _BODILESS:
        return None
    msg = f'"body" is missing; a {method} request needs one: if the lines have another form, pass --body TEMPLATE.json'
    raise InvalidLineError(msg)


def join_url(base: str, path: str) -> str:
    """A relative url appended to the path of a base url, and followed by the base's query."""
    base, _, query = base.partition("?")
    url = base.rstrip("/") + ("" if path.startswith(("/", "?")) else "/") + path
    return url if not query else f"{url}{'&' if '?' in url else '?'}{query}"


# Parsing is slow, and most inputs use a single url.
url_of: Final = lru_cache(maxsize=1000)(absolute_url)
