"""Reads the bodies of language models' requests and answers: their texts, and the usage that answers report."""

import codecs
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

Count = Literal["total", "input", "output"]

_NO_TEXT: Final = frozenset(
    {"model", "role", "type", "object", "user", "metadata", "detail", "media_type", "mimeType", "mime_type"}
    | {"signature", "thoughtSignature", "encrypted_content", "images", "b64_json", "file_data", "cited_text"}
)
"""The keys of values that are not tokens: settings, names, encrypted content, pictures, quotations in citations."""

_DATA_URL: Final = re.compile(
    r"data:[\w.+-]+/[\w.+-]+(?:;[\w.=+-]+)*;base64,(?:[A-Za-z0-9+/=_-]|\r?\n(?=[A-Za-z0-9+/=_-]{20}))*"
)
_PIECE: Final = re.compile(
    r"response\.(?:created|.+(?<!audio)\.delta)|(?:content_block_|content-|step\.)delta"
)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_\r\n-]{64,}+={0,2}+[\r\n]*+")
_EVENT: Final = re.compile(rb"(?:[^\r\n]++(?:\r\n?+|\n)?+)++")
"""An event of a stream: lines up to an empty one."""

_MAX_EVENTS: Final = 100_000
"""Only the last events are read, which report the usage: a server may send millions in a few kilobytes."""

_FORMATS: Final = (
    # First, since proxies such as LiteLLM's add Anthropic's names, for the parts or with zeros.
    ("usage", ("prompt_tokens",), ("completion_tokens",), "total_tokens"),
    # Anthropic and Bedrock count cache writes against the limit, but do not include them in the input tokens.
    ("usage", ("input_tokens", "cache_creation_input_tokens"), ("output_tokens",), "total_tokens"),
    ("usage", ("inputTokens", "cacheWriteInputTokens"), ("outputTokens",), ""),  # The total has cache reads.
    ("tokens", ("user", "enrichment"), ("output",), "total_tokens"),
    (
        "usageMetadata",  # Gemini's, which reports its reasoning separately.
        ("promptTokenCount", "toolUsePromptTokenCount"),
        ("candidatesTokenCount", "thoughtsTokenCount"),
        "totalTokenCount",
    ),
    (
        "usage",  # That of Gemini's interactions.
        ("total_input_tokens", "total_tool_use_tokens"),
        ("total_output_tokens", "total_thought_tokens"),
        "total_tokens",
    ),
)
"""The formats of a usage: its key, the keys of its input tokens and its output tokens, and the key of their total."""
_CONTAINERS: Final = tuple(dict.fromkeys(key for key, *_ in _FORMATS))
_USAGE: Final = re.compile(f'"(?:{"|".join(_CONTAINERS)})"|data:'.encode())


def parsed(text: bytes) -> list[Any]:
    """The value of a JSON text, in a list; an empty list for anything else."""
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        return []


def messages_in(content: bytes) -> list[dict[str, Any]]:
    """The JSON objects in an answer that may report a usage: its body, or the data of its server-sent events."""
    if not _USAGE.search(content):
        return []
    bodies = parsed(content) or [*_events(content)]
    if bodies and isinstance(bodies[0], list) and b'"usageMetadata"' in content:
        bodies = bodies[0]  # Gemini streams an array unless it is asked for events.
    return [body for body in bodies if isinstance(body, dict)]


def texts_in(body: object) -> Iterator[str | None]:
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
            stack += (item for key, item in value.items() if _is_input(key, item))


def _is_input(key: str, value: object) -> bool:
    """Whether the model reads a value under that key."""
    if key in _NO_TEXT or key == "id" or key.endswith(("_id", "_ids")):
        return False
    return not (key in {"data", "bytes"} and isinstance(value, str) and _BASE64.fullmatch(value))


def _events(content: bytes) -> Iterator[Any]:
    """The data of server-sent events (WHATWG HTML, section 9.2.6)."""
    blocks = (found.group() for found in _EVENT.finditer(content.removeprefix(codecs.BOM_UTF8)))
    for event in deque((block for block in blocks if b"{" in block), _MAX_EVENTS):
        lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
        yield from parsed(b"\n".join(lines))


def delta_texts(message: dict[str, Any]) -> list[str] | None:
    """The texts in an event with a piece of an answer; None for any other event."""
    choices, pieces = message.get("choices"), [message.get("delta")]
    kind = message.get("type", message.get("event_type"))  # Gemini's
    if isinstance(choices, list):
        pieces = [choice.get("delta") for choice in choices if isinstance(choice, dict)]
        if not any(isinstance(piece, dict) for piece in pieces):
            return None
    elif not isinstance(kind, str) or not _PIECE.fullmatch(kind):
        return None
    # Tool calls and reasoning are output as well; audio, in base64, is not counted.
    return [text for text in texts_in(pieces) if text is not None]


def _usages(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All usages in a message: at the top level, or inside an event of a stream."""
    # Anthropic, OpenAI's responses and Gemini's interactions start or end a stream with the whole message; Cohere and
    # Groq with a part of it.
    names = ("message", "response", "interaction", "delta", "x_groq")
    if message.get("object") == "batch":
        return  # OpenAI's: the usage of all requests in it, which each poll repeats and another limit counts.
    for place in [message, *(message.get(name) for name in names)]:
        if not isinstance(place, dict):
            continue
        for name in _CONTAINERS:
            usage = place.get(name)
            if isinstance(usage, dict):
                yield usage
                if isinstance(usage.get("tokens"), dict):  # Cohere's
                    yield usage["tokens"]


def reported_in(messages: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The numbers in all usages; numbers that a stream repeats are cumulative, so the last one counts."""
    reported: dict[str, float] = {}
    for message in messages:
        for usage in _usages(message):
            for name, value in usage.items():
                number = number_of(value)
                if number is not None:
                    reported[name] = number
    return reported


def used_tokens(body: object, content: bytes = b"") -> tuple[int, int]:
    """The input and output tokens that an answer reports: its body, or a stream, by its content; 0 for none."""
    reported = reported_in([body] if isinstance(body, dict) else messages_in(content))
    return int(used_of(reported, "input") or 0), int(used_of(reported, "output") or 0)


def used_of(reported: dict[str, float], count: Count) -> float | None:
    """The tokens of that kind in a usage; None if it reports none."""
    for *_, total in _FORMATS:
        if count == "total" and total in reported:
            return reported[total]
    if count == "output" and {"prompt_tokens", "total_tokens"} <= reported.keys():
        # xAI, and Gemini in OpenAI's format, count reasoning in the total only.
        rest = reported["total_tokens"] - reported["prompt_tokens"]
        return max(reported.get("completion_tokens", 0.0), rest)
    for _, into, out, _ in _FORMATS:
        names = into if count == "input" else out if count == "output" else (*into, *out)
        numbers = [reported[name] for name in names if name in reported]
        if numbers:
            return sum(numbers)
    return None


def number_of(value: object) -> float | None:
    """The value, if it is a valid number of tokens."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 1e15 else None
