"""The lines of the outputs, and how failures are reported: a code for programs, a message for people.

The id comes first and the error last, so that reading a line again needs no JSON parser.
"""

import json
import re
from base64 import b64encode
from typing import Any, Final, NamedTuple

import httpx

from .._families import alike
from .._headers import text_of
from .json_text import STRICT, Part, one_line, parse

BEGINNING: Final = re.compile(rb'\{"id": "line-([1-9][0-9]*)", "custom_id": ')
"""How each line of an output begins."""

_CODE: Final = b'"error": {"code": "'
_LONGEST: Final = 500
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SHOWS_URL: Final = frozenset({404, 405, 410})

UNKNOWN: Final = "unknown"
"""The code of lines that were in flight when an earlier run was killed."""


class LineFailure(NamedTuple):
    """Why a line failed: a code for programs, a message for people."""

    code: str
    message: str


class OutputLine(NamedTuple):
    """The outcome of a line, as it is written to an output; an answer has no failure."""

    number: int
    line: bytes
    failure: LineFailure | None

    @property
    def code(self) -> str | None:
        """The code of a failure; None for an answer."""
        return None if self.failure is None else self.failure.code

    @classmethod
    def of(
        cls,
        number: int,
        custom_id: str,
        failure: LineFailure | None,
        response: httpx.Response | None = None,
        body: Part | None = None,
    ) -> "OutputLine":
        """The entry for an answer, or for a failure with the answer where there was one; the id is JSON."""
        answer = error = "null"
        if response is not None and body is not None:
            request_id = json.dumps(text_of(response.headers, b"x-request-id"))
            answer = (
                f'{{"status_code": {response.status_code}, "request_id": {request_id}, "body": {body.text}}}'
            )
        if failure is not None:
            error = f'{{"code": {json.dumps(failure.code)}, "message": {json.dumps(failure.message)}}}'
        own_id = one_line(custom_id)
        line = f'{{"id": "line-{number}", "custom_id": {own_id}, "response": {answer}, "error": {error}}}\n'
        return cls(number, line.encode(), failure)


def code_in(entry: bytes) -> str:
    """The code in the line of a failure."""
    start = entry.rfind(_CODE)
    return entry[start + len(_CODE) :].partition(b'"')[0].decode() if start >= 0 else "other"


def body_of(response: httpx.Response) -> Part:
    """The body of an answer as JSON.

    What is no strict JSON is a string; what is no text is an object with its `content_type` and its bytes in `base64`.
    """
    content = response.content
    try:
        text = content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
        value, written = parse(text, STRICT)
        return Part(value, one_line(written))
    except (ValueError, RecursionError):
        pass
    for charset in (response.charset_encoding or "utf-8", "utf-8"):
        try:
            return Part(None, json.dumps(content.decode(charset)))
        except (LookupError, ValueError):
            continue
    kind = response.headers.get("content-type", "application/octet-stream")
    return Part(None, json.dumps({"content_type": kind, "base64": b64encode(content).decode()}))


def failure_of_answer(response: httpx.Response, body: Part) -> LineFailure:
    """The code and the message for an answer that is a failure."""
    status = response.status_code
    message = f"the server answered {status} {visible(response.reason_phrase)}".rstrip()
    said = _said(body.value)
    message += f": {said}" if said else ""
    if 300 <= status < 400:
        message += f"; a batch follows no redirects{_redirect(response)}"
    if status in _SHOWS_URL:
        message += f"; the request was sent to {_shown(response.request.url)}"
    return LineFailure(f"http_{status}", message)


def failure_of_error(error: Exception, timeouts: dict[str, Any]) -> LineFailure:
    """The code and the message for a call that raised."""
    message = visible(str(error))
    if isinstance(error, alike(httpx.ReadTimeout, httpx.WriteTimeout)):
        message = f"no answer for {timeouts['read']:g} s: to wait longer, pass --deadline SECONDS"
    elif isinstance(error, alike(httpx.ConnectTimeout)):
        message = f"no connection within {timeouts['connect']:g} s: check the host and the network"
    return LineFailure(type(error).__name__, message or f"{type(error).__name__}, without a message")


def visible(text: str) -> str:
    """Text from elsewhere on one line, cut to a readable length, with control characters escaped."""
    return escaped(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


def escaped(text: str) -> str:
    """Text in which characters that a terminal would interpret, such as line breaks, are shown as escapes."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _said(body: Any) -> str:
    """The message in an error body, where most servers put it."""
    for name in ("error", "message", "detail", "details"):
        body = body.get(name, body) if isinstance(body, dict) else body
    return visible(body) if isinstance(body, str) else ""


def _redirect(response: httpx.Response) -> str:
    location = response.headers.get("location", "")
    try:
        target = response.url.join(location)
    except (httpx.InvalidURL, ValueError, RuntimeError):
        return ""
    return f": use {_shown(target)} instead" if location else ""


def _shown(url: httpx.URL) -> str:
    return visible(str(url.copy_with(userinfo=b"", query=None, fragment=None)))
