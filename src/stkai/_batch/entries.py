"""The lines of the outputs. The id comes first, so that reading them again needs no JSON parser."""

import re
from typing import Final

import httpx

from .json_text import Part, dump

ENTRY: Final = re.compile(rb'\{"id": "line-([1-9][0-9]*)", ')
"""How each line of an output begins."""


def success(number: int, custom_id: str, response: httpx.Response, body: Part) -> bytes:
    """The line for an answer."""
    return _entry(number, custom_id, _response(response, body), "null")


def failure(
    number: int,
    custom_id: str,
    code: str,
    message: str,
    response: httpx.Response | None = None,
    body: Part | None = None,
) -> bytes:
    """The line for a failure, with the answer where there was one."""
    answer = "null" if response is None or body is None else _response(response, body)
    return _entry(number, custom_id, answer, f'{{"code": {dump(code)}, "message": {dump(message)}}}')


def _response(response: httpx.Response, body: Part) -> str:
    request_id = dump(response.headers.get("x-request-id"))
    return f'{{"status_code": {response.status_code}, "request_id": {request_id}, "body": {body.text}}}'


def _entry(number: int, custom_id: str, response: str, error: str) -> bytes:
    line = f'{{"id": "line-{number}", "custom_id": {custom_id}, "response": {response}, "error": {error}}}\n'
    return line.encode()
