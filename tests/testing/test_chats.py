"""The chats of the embedded server, as in OpenAI's API."""

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


def events(response: httpx.Response) -> list[Any]:
    """The data of server-sent events."""
    data = [block.removeprefix("data: ") for block in response.text.strip().split("\n\n")]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


@pytest.mark.parametrize("said", [SAID, IN_PARTS])
def test_a_completion_repeats_the_last_message(http: httpx.Client, said: dict[str, Any]) -> None:
    answer = http.post("/v1/chat/completions", json=said).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "one  two three"}
    assert answer["usage"]["total_tokens"] == 6


def test_a_streamed_completion_sends_word_by_word_and_a_done_event(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json={**SAID, "stream": True})
    *chunks, last = events(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert last == "[DONE]"
    deltas = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert "".join(filter(None, deltas)) == "one  two three"
    assert len(deltas) == 5
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("said", [{}, {"messages": []}, {"messages": ["no"]}, {"messages": "no"}])
def test_an_empty_chat_gets_an_empty_answer(http: httpx.Client, said: dict[str, Any]) -> None:
    assert http.post("/v1/chat/completions", json=said).json()["choices"][0]["message"]["content"] == ""
