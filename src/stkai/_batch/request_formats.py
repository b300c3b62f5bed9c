"""Turns a line of the input into a request: OpenAI's batch format, any object with a template, or a quick command."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import httpx

from .._headers import headers_of
from .._urls import absolute_url
from .json_text import JsonValue, Template, members

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_BODILESS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})

Values = Mapping[str, JsonValue]


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
        msg = f"this is not UTF-8, from byte {error.start + 1} on: save the file as UTF-8"
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
            return _utf8(template.fill(values or {}))
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
            return parse_url(url)
        except ValueError as error:
            raise InvalidLineError(f'"url" is not a url: {error}') from None


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
parse_url: Final = lru_cache(maxsize=1000)(absolute_url)
