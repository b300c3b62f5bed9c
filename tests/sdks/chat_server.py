"""The embedded server with the chats of Anthropic, Cohere, Gemini and Groq."""

import json
from typing import Any

from stkai.testing import QuotaServer
from stkai.testing._replies import Reply, completion, json_reply, last_words
from stkai.testing._service import API
from stkai.testing._service import chat as chat_with

ID = {"id": "chat-1"}


class ChatServer(QuotaServer):
    """A quota server whose model speaks to the SDKs of Anthropic, Cohere, Google and Groq as well, all below `/v1`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for path, reply in (
            ("/messages", message),
            ("/v2/chat", chat),
            ("/openai/v1/chat/completions", completion),
            ("/models/[^/]+:generateContent", content),
        ):
            self._service.routes.append(("POST", f"{API}{path}()", True, chat_with(reply)))


def message(asked: dict[str, Any]) -> Reply:
    """`/messages`, as in Anthropic's API."""
    words = last_words(asked)
    start: dict[str, Any] = {**ID, "model": "echo", "type": "message", "role": "assistant"}
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
    return stream_of(events)


def chat(asked: dict[str, Any]) -> Reply:
    """`/v2/chat`, as in Cohere's API."""
    words = last_words(asked)
    used = {"tokens": {"input_tokens": len(words), "output_tokens": len(words)}}
    end = {"finish_reason": "COMPLETE", "usage": used}
    if not asked.get("stream"):
        content = [{"type": "text", "text": "".join(words)}]
        return json_reply({**ID, "message": {"role": "assistant", "content": content}, **end})
    events: list[dict[str, Any]] = [
        {"type": "message-start", **ID, "delta": {"message": {"role": "assistant"}}},
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
        {"type": "message-end", **ID, "delta": end},
    ]
    return stream_of(events)


def content(asked: dict[str, Any]) -> Reply:
    """`/models/{model}:generateContent`, as in Gemini's API."""
    part = asked["contents"][-1]["parts"][0]
    candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}
    return json_reply({"candidates": [candidate], "usageMetadata": {"totalTokenCount": 2}})


def stream_of(events: list[dict[str, Any]]) -> Reply:
    """Server-sent events, named by their types."""
    texts = (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return Reply(
        headers=(("content-type", "text/event-stream"),),
        pieces=tuple(text.encode() for text in texts),
        streamed=True,
    )
