"""What a call costs a limiter that counts units besides requests, such as a language model's tokens per minute.

A cost is needed twice: as an estimate before the request is sent, and as the real number when the answer has been read.
`llm_tokens()` gives both for the bodies and usage reports of OpenAI, Anthropic, Mistral, Cohere and StackSpot, and of
compatible servers:

    build_client(rate_limit=TokenBucket(60, 60, max_cost=100_000), **llm_tokens())
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from typing import Any, Final, TypedDict

import httpx

from ._families import alike

__all__ = ["LlmTokens", "llm_tokens"]

_CHARACTERS_PER_TOKEN: Final = 4
"""OpenAI's rule of thumb for English text: https://help.openai.com/en/articles/4936856"""

_MOST_OUTPUT: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")

_NOT_SPOKEN: Final = frozenset(
    {"model", "role", "type", "object", "user", "metadata", "detail", "media_type"}
)
_NOT_TEXT: Final = frozenset({"signature", "encrypted_content", "images", "b64_json", "file_data"})
_NO_TEXT: Final = _NOT_SPOKEN | _NOT_TEXT
"""The keys of values that the model does not read as text: settings, names, encrypted content and pictures."""

_DATA_URL: Final = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.=+-]+)*;base64,[A-Za-z0-9+/=_-]*")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{64,}={0,2}")
_TEXTUAL: Final = re.compile(r"text/|application/(?:[\w.+-]*json|x-www-form-urlencoded)", re.IGNORECASE)
_USAGE: Final = re.compile(rb'"(?:usage|tokens)"')


class LlmTokens(TypedDict):
    """The arguments `cost=` and `settle=` of the `build_*` functions."""

    cost: Callable[[httpx.Request], float]
    settle: Callable[[httpx.Response], float | None]


def llm_tokens(tokenizer: Callable[[str], Sized] | None = None) -> LlmTokens:
    """Count the tokens of language models: pass the result as `build_client(..., **llm_tokens())`.

    The estimate is one token for every four characters of text in the body, plus the longest possible answer:
    `max_tokens`, `max_completion_tokens` or `max_output_tokens`. It leaves out images and other attachments. The real
    cost is the `usage` of the answer (StackSpot's `tokens`), input and output together, streamed or not.

    Args:
        tokenizer: turns a text into its tokens, if four characters per token is not accurate enough; for example
            `tiktoken.get_encoding("o200k_base").encode_ordinary`. Texts that it cannot read are estimated.
    """

    def count(text: str) -> float:
        if tokenizer is not None:
            with suppress(Exception):  # User code; a rough estimate is better than a call that fails.
                return float(len(tokenizer(text)))
        return len(text) / _CHARACTERS_PER_TOKEN

    def cost(request: httpx.Request) -> float:
        return _estimate(request, count)

    return {"cost": cost, "settle": _used}


def _estimate(request: httpx.Request, count: Callable[[str], float]) -> float:
    """The tokens that a request asks for; a body that cannot be inspected is estimated by its length."""
    try:
        content = request.content
    except alike(httpx.RequestNotRead):  # A generator or a file: only the wire may read it.
        return _by_length(request, request.headers.get("content-length"))
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return _by_length(request, len(content))
    tokens = sum(1.0 if text is None else count(text) for text in _texts(body))
    if isinstance(body, dict):
        tokens += max(_number(body.get(name)) or 0.0 for name in _MOST_OUTPUT)
    return tokens


def _by_length(request: httpx.Request, length: int | str | None) -> float:
    kind = request.headers.get("content-type", "text/plain")
    try:
        known = int(length or 0)
    except ValueError:
        known = 0
    return (_number(known) or 0.0) / _CHARACTERS_PER_TOKEN if _TEXTUAL.match(kind) else 0.0


def _texts(body: object) -> Iterator[str | None]:
    """The texts in a body, and None for each token that is given as a number."""
    stack = [body]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield _DATA_URL.sub("", value) if "base64," in value else value
        elif isinstance(value, list):
            stack += value
            yield from (None for item in value if type(item) is int)
        elif isinstance(value, dict):
            stack += (item for key, item in value.items() if _speaks(key, item))


def _speaks(key: str, value: object) -> bool:
    """Whether the model reads a value under that key."""
    if key in _NO_TEXT or key == "id" or key.endswith(("_id", "_ids")):
        return False
    return not (key == "data" and isinstance(value, str) and _BASE64.fullmatch(value))


def _used(response: httpx.Response) -> float | None:
    """The tokens that an answer says it has used; None if it says nothing about them."""
    content = response.content
    if not _USAGE.search(content):
        return None
    said: dict[str, float] = {}
    for message in _messages(content):
        for usage in _usages(message):
            # What a stream repeats is cumulative: the last one counts.
            said.update(
                (name, number) for name, value in usage.items() if (number := _number(value)) is not None
            )
    return _total(said)


def _messages(content: bytes) -> Iterator[dict[str, Any]]:
    """The JSON object in a body, or those in its server-sent events."""
    try:
        bodies = [json.loads(content)]
    except (ValueError, RecursionError):
        bodies = list(_events(content))
    yield from (body for body in bodies if isinstance(body, dict))


def _events(content: bytes) -> Iterator[Any]:
    """The data of server-sent events (WHATWG HTML, section 9.2.6) that report usage."""
    for event in re.split(rb"\r\n\r\n|\n\n|\r\r", content):
        lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
        data = b"\n".join(lines)
        if _USAGE.search(data):
            try:
                yield json.loads(data)
            except (ValueError, RecursionError):
                continue


def _usages(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Where usage may be: at the top, or in what a stream wraps it in."""
    # Anthropic and OpenAI's responses start or end a stream with the whole message; Cohere and Groq with a part of it.
    places = [message, *(message.get(name) for name in ("message", "response", "delta", "x_groq"))]
    for place in places:
        if not isinstance(place, dict):
            continue
        for name in ("usage", "tokens"):
            usage = place.get(name)
            if isinstance(usage, dict):
                yield usage
                if isinstance(usage.get("tokens"), dict):  # Cohere's
                    yield usage["tokens"]


def _total(said: dict[str, float]) -> float | None:
    if "total_tokens" in said:
        return said["total_tokens"]
    # Anthropic counts cache writes against the limit, but does not include them in `input_tokens`.
    for names in (
        ("input_tokens", "cache_creation_input_tokens", "output_tokens"),
        ("prompt_tokens", "completion_tokens"),
        ("user", "enrichment", "output"),
    ):
        numbers = [said[name] for name in names if name in said]
        if numbers:
            return sum(numbers)
    return None


def _number(value: object) -> float | None:
    """The value as a number of tokens, if it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        return None
    return float(value) if math.isfinite(value) else None
