"""Chats: what a model would answer, in the formats of StackSpot AI and of the APIs that SDKs use.

The model repeats the last message. Streamed, it says one word at a time.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from ._requests_and_replies import Reply, json_reply

MODEL: Final = "echo"
_ID: Final = "chat-1"
_CREATED: Final = 1_700_000_000


def agent(asked: dict[str, Any], pause: float) -> Reply:
    """`/agent/{id}/chat`, as StackSpot AI answers."""
    prompt = str(asked.get("user_prompt", ""))
    words = _cut(prompt)
    end = {"stop_reason": "stop", "tokens": {"user": len(words), "enrichment": 0, "output": len(words)}}
    if not asked.get("streaming"):
        return json_reply({"message": prompt, **end})
    events = [*({"message": word} for word in words), {"message": "", **end}]
    return _events([(None, json.dumps(event)) for event in events], pause)


def completion(asked: dict[str, Any], pause: float) -> Reply:
    """`/chat/completions`, as in OpenAI's API; Groq, Mistral and Together have the same."""
    words = _words(asked)
    common = {"id": _ID, "created": _CREATED, "model": MODEL}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": "".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        used = {
            "prompt_tokens": len(words),
            "completion_tokens": len(words),
            "total_tokens": 2 * len(words),
        }
        return json_reply({**common, "object": "chat.completion", "choices": [choice], "usage": used})
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": word}, None) for word in words]
    chunks = (
        {
            **common,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }
        for delta, reason in [*deltas, ({}, "stop")]
    )
    return _events([*((None, json.dumps(chunk)) for chunk in chunks), (None, "[DONE]")], pause)


def message(asked: dict[str, Any], pause: float) -> Reply:
    """`/messages`, as in Anthropic's API."""
    words = _words(asked)
    start: dict[str, Any] = {"id": _ID, "type": "message", "role": "assistant", "model": MODEL}
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    used = {"input_tokens": len(words), "output_tokens": len(words)}
    if not asked.get("stream"):
        content = [{"type": "text", "text": "".join(words)}]
        return json_reply({**start, "content": content, **end, "usage": used})
    opened = {**start, "content": [], "stop_reason": None, "stop_sequence": None, "usage": used}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": opened},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            for word in words
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": end, "usage": {"output_tokens": len(words)}},
        {"type": "message_stop"},
    ]
    return _events(_named(events), pause)


def chat(asked: dict[str, Any], pause: float) -> Reply:
    """`/v2/chat`, as in Cohere's API."""
    words = _words(asked)
    used = {"tokens": {"input_tokens": len(words), "output_tokens": len(words)}}
    end = {"finish_reason": "COMPLETE", "usage": used}
    if not asked.get("stream"):
        content = [{"type": "text", "text": "".join(words)}]
        return json_reply({"id": _ID, "message": {"role": "assistant", "content": content}, **end})
    events: list[dict[str, Any]] = [
        {"type": "message-start", "id": _ID, "delta": {"message": {"role": "assistant"}}},
        {
            "type": "content-start",
            "index": 0,
            "delta": {"message": {"content": {"type": "text", "text": ""}}},
        },
        *(
            {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": word}}}}
            for word in words
        ),
        {"type": "content-end", "index": 0},
        {"type": "message-end", "id": _ID, "delta": end},
    ]
    return _events(_named(events), pause)


def _words(asked: dict[str, Any]) -> list[str]:
    """The last message, cut into words; each keeps its spaces."""
    messages = asked.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else {}
    content = last.get("content", "") if isinstance(last, dict) else ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return _cut(str(content))


def _cut(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*", text)


def _named(events: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    return ((event["type"], json.dumps(event)) for event in events)


def _events(events: Iterable[tuple[str | None, str]], pause: float) -> Reply:
    """Server-sent events, each with its data and, if it has one, its name."""
    lines = ((f"event: {name}\n" if name else "") + f"data: {data}\n\n" for name, data in events)
    return Reply(
        headers=(("content-type", "text/event-stream"), ("cache-control", "no-cache")),
        pieces=tuple(line.encode() for line in lines),
        pause=pause,
        streamed=True,
    )
