"""What a call costs under a limiter that counts units besides requests, such as a language model's tokens per minute.

A cost is needed twice: as an estimate before the request is sent, and as the real number when the answer has been read.
`llm_tokens()` gives both for the bodies and usage reports of OpenAI, Anthropic, Gemini, Mistral, Cohere and StackSpot,
and of compatible servers:

    build_client(rate_limit=TokenBucket(60, 60, max_cost=100_000, cost=llm_tokens()))
"""

import codecs
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from itertools import chain
from typing import Any, Final, Literal

import httpx

from ._checks import check_choice
from ._errors import ConfigurationError
from ._families import alike
from ._process import raise_interrupt

__all__ = ["LlmTokens", "llm_tokens", "model_of"]
__dir__ = __all__.copy

Count = Literal["total", "input", "output"]

CHARACTERS_PER_TOKEN: Final = 4
"""OpenAI's rule of thumb for English text: https://help.openai.com/en/articles/4936856"""

_MOST_OUTPUT: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens")

_NO_TEXT: Final = frozenset(
    {"model", "role", "type", "object", "user", "metadata", "detail", "media_type", "mimeType"}
    | {"signature", "thoughtSignature", "encrypted_content", "images", "b64_json", "file_data", "cited_text"}
)
"""The keys of values that are not tokens: settings, names, encrypted content, pictures, quotations in citations."""

_DATA_URL: Final = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.=+-]+)*;base64,[A-Za-z0-9+/=_-]*")
_PIECE: Final = re.compile(r"response\.(?:created|.+(?<!audio)\.delta)|content_block_delta|content-delta")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{64,}={0,2}")
_TEXTUAL: Final = re.compile(r"text/|application/(?:[\w.+-]*json|x-www-form-urlencoded)", re.IGNORECASE)

_FORMATS: Final = (
    # Anthropic counts cache writes against the limit, but does not include them in `input_tokens`.
    ("usage", ("input_tokens", "cache_creation_input_tokens"), ("output_tokens",), "total_tokens"),
    ("usage", ("prompt_tokens",), ("completion_tokens",), "total_tokens"),
    ("tokens", ("user", "enrichment"), ("output",), "total_tokens"),
    (
        "usageMetadata",  # Gemini's, which reports its reasoning separately.
        ("promptTokenCount", "toolUsePromptTokenCount"),
        ("candidatesTokenCount", "thoughtsTokenCount"),
        "totalTokenCount",
    ),
)
"""What answers report: the key of the usage, those of the input, those of the output, and that of both together."""
_CONTAINERS: Final = tuple(dict.fromkeys(key for key, *_ in _FORMATS))
_USAGE: Final = re.compile(f'"(?:{"|".join(_CONTAINERS)})"|data:'.encode())


class CountedFromText(float):
    """Tokens counted from the text of a stream that reported no usage because the request did not ask for it."""


class LlmTokens(dict[str, Any]):  # Any: type checkers compare what `**` unpacks with every keyword.
    """Counts the tokens of calls to a language model: the `cost=` of a limiter.

    As `**llm_tokens()`, it is the `cost=` and `settle=` of a stack.
    """

    def __init__(self, count: Count, tokenizer: Callable[[str], Sized] | None) -> None:
        super().__init__(cost=self.estimate, settle=self.settle)
        self._count, self._tokenizer = count, tokenizer

    def estimate(self, request: httpx.Request) -> float:
        """The tokens that a request may use; if its body cannot be inspected, an estimate by its length."""
        content = _content(request)
        bodies = _parsed(content or b"")
        if not bodies:
            length = request.headers.get("content-length") if content is None else len(content)
            return 0.0 if self._count == "output" else _tokens_of_length(request, length)
        body, tokens = bodies[0], 0.0
        if self._count != "output":
            tokens += sum(1.0 if text is None else self._tokens(text) for text in _texts(body))
        if self._count != "input" and isinstance(body, dict):
            options = body.get("generationConfig")  # Gemini's
            places = (body, options) if isinstance(options, dict) else (body,)
            tokens += max(_number(place.get(name)) or 0.0 for place in places for name in _MOST_OUTPUT)
        return tokens

    def settle(self, response: httpx.Response) -> float | None:
        """The tokens that an answer reports, or those of the text that a stream has sent; None if there is neither.

        A refused request (4xx) costs nothing, unless it reports otherwise; limiters handle a 429 themselves.
        """
        content = response.content
        is_refused = response.is_client_error and response.status_code != httpx.codes.TOO_MANY_REQUESTS
        unreported = 0.0 if is_refused else None
        if not _USAGE.search(content):
            return unreported
        # The JSON object in the body, or those in its server-sent events.
        bodies = _parsed(content) or [*_events(content)]
        if bodies and isinstance(bodies[0], list) and b'"usageMetadata"' in content:
            bodies = bodies[0]  # Gemini streams an array unless it is asked for events.
        messages = [body for body in bodies if isinstance(body, dict)]
        reported = _reported(messages)
        pieces = [texts for message in messages if (texts := _delta_texts(message)) is not None]
        text = "".join(chain.from_iterable(pieces))
        types = [each.get("type") for each in messages if each.get("message") or each.get("usage")]
        if "message_start" in types and "message_delta" not in types:
            # Anthropic's streams report the input first and the output last; this one was closed before its end.
            reported["output_tokens"] = max(reported.get("output_tokens", 0.0), self._tokens(text))
        used = _used(reported, self._count)
        if used is not None:
            return used
        if not pieces:
            return unreported
        request = None
        with suppress(RuntimeError):  # A response that was constructed by hand may have none.
            request = response.request
        arrived = 0.0 if self._count == "input" else self._tokens(text)
        if self._count != "output" and request is not None:
            arrived += LlmTokens("input", self._tokenizer).estimate(request)
        # Streams of OpenAI's Responses API always report a usage at the end; this one was closed before.
        is_chat = any("choices" in message for message in messages)
        return CountedFromText(arrived) if is_chat and not _asks_for_usage(request) else arrived

    def _tokens(self, text: str) -> float:
        if self._tokenizer is not None:
            try:
                return float(len(self._tokenizer(text)))
            except Exception as error:  # noqa: BLE001 - user code; a rough estimate is better than a call that fails
                raise_interrupt(error)
        return len(text) / CHARACTERS_PER_TOKEN

    def __repr__(self) -> str:
        return f"llm_tokens({self._count!r})"


def llm_tokens(count: Count = "total", tokenizer: Callable[[str], Sized] | None = None) -> LlmTokens:
    """Count the tokens of language models: `TokenBucket(500, 60, max_cost=200_000, cost=llm_tokens())`.

    The estimate is one token for every four characters of text in the body, plus the longest possible answer:
    `max_tokens`, `max_completion_tokens`, `max_output_tokens` or Gemini's `maxOutputTokens`. It leaves out images and
    other attachments. The real cost is the `usage` of the answer (StackSpot's `tokens`, Gemini's `usageMetadata`),
    streamed or not. A stream that reports none is settled by the text that arrived.

    Args:
        count: "total", or "input" or "output" alone, for services that limit them separately.
        tokenizer: turns a text into its tokens, if four characters per token is not accurate enough; for example
            `tiktoken.get_encoding("o200k_base").encode_ordinary`. Texts that it cannot read are estimated.

    Raises:
        ConfigurationError: (a ValueError) `count` is something else, or `tokenizer` cannot be called.
    """
    check_choice("count", count, "total", "input", "output")
    if tokenizer is not None and not callable(tokenizer):
        raise ConfigurationError(
            f"tokenizer must be a function, such as encoding.encode_ordinary, not {tokenizer!r}"
        )
    return LlmTokens(count, tokenizer)


def model_of(request: httpx.Request) -> str:
    """The `model` that a JSON body names, for `stkai.PerKey`; "" without one. Never reads a generator."""
    model = _body_of(request).get("model")
    return model if isinstance(model, str) else ""


def _content(request: httpx.Request) -> bytes | None:
    """A request's body; None for a generator or a file, which only the wire may read."""
    try:
        return request.content
    except alike(httpx.RequestNotRead):
        return None


def _parsed(text: bytes) -> list[Any]:
    """The value of a JSON text, in a list; an empty list for anything else."""
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        return []


def _body_of(request: httpx.Request) -> dict[str, Any]:
    """The JSON object in a request's body; empty if there is none."""
    return next((body for body in _parsed(_content(request) or b"") if isinstance(body, dict)), {})


def _tokens_of_length(request: httpx.Request, length: int | str | None) -> float:
    kind = request.headers.get("content-type", "text/plain")
    try:
        known = int(length or 0)
    except ValueError:
        known = 0
    return (_number(known) or 0.0) / CHARACTERS_PER_TOKEN if _TEXTUAL.match(kind) else 0.0


def _texts(body: object) -> Iterator[str | None]:
    """The texts in a body, and None for each token that is sent as a number."""
    stack = [body]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield _DATA_URL.sub("", value) if "base64," in value else value
        elif isinstance(value, list):
            stack += value
            yield from (None for item in value if type(item) is int)
        elif isinstance(value, dict):
            stack += (item for key, item in value.items() if _is_read(key, item))


def _is_read(key: str, value: object) -> bool:
    """Whether the model reads a value under that key."""
    if key in _NO_TEXT or key == "id" or key.endswith(("_id", "_ids")):
        return False
    return not (key == "data" and isinstance(value, str) and _BASE64.fullmatch(value))


def _events(content: bytes) -> Iterator[Any]:
    """The data of server-sent events (WHATWG HTML, section 9.2.6)."""
    for event in re.split(rb"\n\r?\n|\n\r|\r\r", content.removeprefix(codecs.BOM_UTF8)):
        lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
        yield from _parsed(b"\n".join(lines))


def _delta_texts(message: dict[str, Any]) -> list[str] | None:
    """The texts in an event with a piece of an answer; None for any other event."""
    choices, kind, pieces = message.get("choices"), message.get("type"), [message.get("delta")]
    if isinstance(choices, list):
        pieces = [choice.get("delta") for choice in choices if isinstance(choice, dict)]
        if not any(isinstance(piece, dict) for piece in pieces):
            return None
    elif not isinstance(kind, str) or not _PIECE.fullmatch(kind):
        return None
    # Tool calls and reasoning are output as well; audio, in base64, is not counted.
    return [text for text in _texts(pieces) if text is not None]


def _asks_for_usage(request: httpx.Request | None) -> bool:
    """Whether a request asked for the usage of its stream, which then was merely closed too early."""
    options = None if request is None else _body_of(request).get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _usages(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The places of a usage: at the top, or inside an event of a stream."""
    # Anthropic and OpenAI's responses start or end a stream with the whole message; Cohere and Groq with a part of it.
    places = [message, *(message.get(name) for name in ("message", "response", "delta", "x_groq"))]
    for place in places:
        if not isinstance(place, dict):
            continue
        for name in _CONTAINERS:
            usage = place.get(name)
            if isinstance(usage, dict):
                yield usage
                if isinstance(usage.get("tokens"), dict):  # Cohere's
                    yield usage["tokens"]


def _reported(messages: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The numbers in all usages; what a stream repeats is cumulative, so the last one counts."""
    reported: dict[str, float] = {}
    for message in messages:
        for usage in _usages(message):
            for name, value in usage.items():
                number = _number(value)
                if number is not None:
                    reported[name] = number
    return reported


def used_tokens(body: object) -> tuple[int, int]:
    """The input and output tokens that the body of an answer reports; 0 where it reports none."""
    reported = _reported([body]) if isinstance(body, dict) else {}
    return int(_used(reported, "input") or 0), int(_used(reported, "output") or 0)


def _used(reported: dict[str, float], count: Count) -> float | None:
    """The tokens of that kind in a usage; None if it does not name them."""
    for *_, total in _FORMATS:
        if count == "total" and total in reported:
            return reported[total]
    for _, into, out, _ in _FORMATS:
        names = into if count == "input" else out if count == "output" else (*into, *out)
        numbers = [reported[name] for name in names if name in reported]
        if numbers:
            return sum(numbers)
    return None


def _number(value: object) -> float | None:
    """The value, if it is a valid number of tokens."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        return None
    return float(value) if math.isfinite(value) else None
