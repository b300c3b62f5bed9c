"""The chats of the embedded server, in the formats of the APIs that SDKs use."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from stkai.testing import QuotaServer

SAID = {"messages": [{"role": "user", "content": "one  two three"}]}
IN_PARTS = {"messages": [{"role": "user", "content": [{"type": "text", "text": "one  two three"}]}]}


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with QuotaServer(auth_required=False) as server, httpx.Client(base_url=server.url) as client:
        yield client


def events(response: httpx.Response) -> list[tuple[str | None, Any]]:
    """The names, if any, and the data of server-sent events."""
    found = []
    for block in response.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        data = fields["data"]
        found.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found


@pytest.mark.parametrize("said", [SAID, IN_PARTS])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/openai/v1/chat/completions"])
def test_a_completion_repeats_the_last_message(http: httpx.Client, path: str, said: dict[str, Any]) -> None:
    answer = http.post(path, json=said).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "one  two three"}
    assert answer["usage"]["total_tokens"] == 6


def test_a_streamed_completion_sends_word_by_word_and_a_done_event(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json={**SAID, "stream": True})
    *chunks, last = events(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert last == (None, "[DONE]")
    deltas = [chunk["choices"][0]["delta"].get("content") for _, chunk in chunks]
    assert "".join(filter(None, deltas)) == "one  two three"
    assert len(deltas) == 5
    assert chunks[-1][1]["choices"][0]["finish_reason"] == "stop"


def test_a_message_is_answered_at_once_or_as_named_events(http: httpx.Client) -> None:
    answer = http.post("/v1/messages", json=SAID).json()
    assert answer["content"] == [{"type": "text", "text": "one  two three"}]
    assert answer["stop_reason"] == "end_turn"
    streamed = events(http.post("/v1/messages", json={**SAID, "stream": True}))
    assert [name for name, _ in streamed] == [event["type"] for _, event in streamed]
    assert (streamed[0][0], streamed[-1][0]) == ("message_start", "message_stop")
    words = [event["delta"]["text"] for name, event in streamed if name == "content_block_delta"]
    assert "".join(words) == "one  two three"


def test_a_chat_is_answered_at_once_or_as_named_events(http: httpx.Client) -> None:
    answer = http.post("/v2/chat", json=SAID).json()
    assert answer["message"]["content"] == [{"type": "text", "text": "one  two three"}]
    streamed = events(http.post("/v2/chat", json={**SAID, "stream": True}))
    assert (streamed[0][0], streamed[-1][0]) == ("message-start", "message-end")
    words = [
        event["delta"]["message"]["content"]["text"] for name, event in streamed if name == "content-delta"
    ]
    assert "".join(words) == "one  two three"


@pytest.mark.parametrize("said", [{}, {"messages": []}, {"messages": ["no"]}, {"messages": "no"}])
def test_an_empty_chat_gets_an_empty_answer(http: httpx.Client, said: dict[str, Any]) -> None:
    assert http.post("/v1/chat/completions", json=said).json()["choices"][0]["message"]["content"] == ""
