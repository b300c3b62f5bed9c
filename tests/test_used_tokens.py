"""The tokens that the answer of a language model reports."""

import codecs
import json
import zlib
from typing import Any

import httpx
import pytest

from stkai._llm_bodies import used_tokens
from stkai.costs import llm_tokens

SETTLE = llm_tokens()["settle"]


def answer(body: object) -> httpx.Response:
    return httpx.Response(200, json=body)


def stream(*events: object, end: str = "\n\n", name: str = "") -> httpx.Response:
    text = "".join(f"{name}data: {json.dumps(event)}{end}" for event in events)
    headers = {"content-type": "text/event-stream"}
    return httpx.Response(200, headers=headers, content=f"{text}data: [DONE]{end}".encode())


ANTHROPIC = [
    {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 25, "output_tokens": 1}}},
    {"type": "ping"},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": 'the "usage" of words' * 20}},
    {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 7}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
    {"type": "message_stop"},
]


BEDROCK = {
    "output": {"message": {"role": "assistant", "content": [{"text": "Hello"}]}},
    "usage": {
        "inputTokens": 30,
        "outputTokens": 7,
        "totalTokens": 5437,
        "cacheReadInputTokens": 5000,
        "cacheWriteInputTokens": 400,
    },
    "metrics": {"latencyMs": 551},
}

INTERACTION = {
    "id": "v1_x",
    "status": "completed",
    "steps": [{"type": "model_output", "content": [{"type": "text", "text": "Hello"}]}],
    "usage": {
        "total_input_tokens": 11,
        "total_cached_tokens": 4,
        "total_output_tokens": 7,
        "total_thought_tokens": 5,
        "total_tool_use_tokens": 2,
        "total_tokens": 25,
    },
}

GEMINI = {
    "usageMetadata": {
        "promptTokenCount": 11,
        "candidatesTokenCount": 7,
        "thoughtsTokenCount": 5,
        "totalTokenCount": 23,
    }
}


@pytest.mark.parametrize(
    ("response", "tokens"),
    [
        (answer({"usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}}), 21),
        (answer({"usage": {"prompt_tokens": 9, "completion_tokens": 12}}), 21),
        (answer({"usage": {"prompt_tokens": 9, "total_tokens": None}}), 9),
        (answer({"usage": {"input_tokens": 9, "output_tokens": 12, "total_tokens": 21}}), 21),
        (answer({"type": "message", "usage": {"input_tokens": 9, "output_tokens": 12}}), 21),
        (
            answer(
                {
                    "usage": {
                        "input_tokens": 9,
                        "cache_creation_input_tokens": 100,
                        "cache_read_input_tokens": 5000,
                        "output_tokens": 12,
                    }
                }
            ),
            121,
        ),
        (answer({"message": "hello", "tokens": {"user": 80, "enrichment": 15, "output": 20}}), 115),
        (answer({"message": "hello", "tokens": {"user": 80, "enrichment": None, "output": 20}}), 100),
        (answer({"usage": {"tokens": {"input_tokens": 3, "output_tokens": 4}}}), 7),
        (answer(GEMINI), 23),
        (answer(BEDROCK), 30 + 400 + 7),
        (answer(INTERACTION), 25),
        (stream({"event_type": "interaction.completed", "interaction": INTERACTION}), 25),
        (stream({"event_type": "step.delta", "delta": {"type": "text", "text": "x" * 40}}), 10),
        (stream({"usageMetadata": {"promptTokenCount": 11, "totalTokenCount": 11}}, GEMINI), 23),
        (stream({"usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": 1}}), 12),
        (answer([{"usageMetadata": {"promptTokenCount": 11, "totalTokenCount": 11}}, GEMINI]), 23),
        (stream(*ANTHROPIC), 40),
        (stream(*ANTHROPIC, name="event: message\n"), 40),
        (stream(*ANTHROPIC, end="\r\n\r\n"), 40),
        (stream(*ANTHROPIC, end="\r\r"), 40),
        (stream(*ANTHROPIC, end="\n\r\n"), 40),
        (httpx.Response(200, content=codecs.BOM_UTF8 + stream(*ANTHROPIC).content), 40),
        (stream({"choices": [], "usage": None}, {"usage": {"total_tokens": 21}}), 21),
        (stream({"usage": {"total_tokens": 4}}, {"usage": {"total_tokens": 21}}), 21),
        (stream({"type": "response.completed", "response": {"usage": {"total_tokens": 21}}}), 21),
        (stream({"x_groq": {"id": "r", "usage": {"total_tokens": 21}}}), 21),
        (stream({"delta": {"usage": {"tokens": {"input_tokens": 3, "output_tokens": 4}}}}), 7),
        (
            stream(
                {"message": "hel", "tokens": None},
                {"message": "lo", "tokens": {"user": 80, "enrichment": 15, "output": 20}},
            ),
            115,
        ),
        (httpx.Response(200, content=b'data:{"usage":\ndata: {"total_tokens": 21}}\n\n'), 21),
    ],
)
def test_the_usage_in_an_answer_is_the_real_cost(response: httpx.Response, tokens: float) -> None:
    assert SETTLE(response) == tokens


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200),
        httpx.Response(429, json={"error": "slow down"}),
        httpx.Response(500, json={"error": "a failure"}),
        httpx.Response(200, text="the usage of words"),
        httpx.Response(200, content=b'{"usage": {"total_tokens": 21}'),
        httpx.Response(200, content=b'data: {"usage": \n\n'),
        answer([{"usage": {"total_tokens": 21}}]),
        answer({"object": "batch", "status": "completed", "usage": {"total_tokens": 20_000_000}}),
        answer({"usage": {}}),
        answer({"usage": 21}),
        answer({"usage": {"total_tokens": "21"}}),
        answer({"usage": {"total_tokens": -1}}),
        answer({"usage": {"total_tokens": True}}),
        answer({"usage": {"cost": 0.1}}),
        httpx.Response(200, content=b'{"usage": {"total_tokens": NaN}}'),
    ],
)
def test_an_answer_without_usage_keeps_the_estimate(response: httpx.Response) -> None:
    assert SETTLE(response) is None


@pytest.mark.parametrize(
    ("body", "cost"),
    [
        ({"error": "max_tokens is too large"}, 0),
        ({"error": "the usage is too high", "usage": None}, 0),
        ({"usage": {"total_tokens": 21}}, 21),
    ],
)
def test_a_refused_request_costs_nothing_unless_it_says_so(body: object, cost: float) -> None:
    for status in (400, 401, 413, 422):
        assert SETTLE(httpx.Response(status, json=body)) == cost


def test_bedrock_counts_what_is_written_to_its_cache_as_input() -> None:
    assert llm_tokens("input").settle(answer(BEDROCK)) == 30 + 400
    assert llm_tokens("output").settle(answer(BEDROCK)) == 7


@pytest.mark.parametrize(
    "more",
    [
        {"cache_creation_input_tokens": 100, "cache_read_input_tokens": 5000},
        {"input_tokens": 0, "output_tokens": 0, "input_tokens_details": None},
    ],
    ids=["parts", "zeros"],
)
def test_the_names_of_anthropic_that_a_proxy_adds_to_those_of_openai_are_not_the_usage(
    more: dict[str, Any],
) -> None:
    usage = {"completion_tokens": 503, "prompt_tokens": 7195, "total_tokens": 7698, **more}
    for response in (answer({"usage": usage}), stream({"choices": [], "usage": usage})):
        assert llm_tokens("input").settle(response) == 7195
        assert llm_tokens("output").settle(response) == 503
        assert SETTLE(response) == 7698


@pytest.mark.parametrize("details", [{"reasoning_tokens": 94}, None])
def test_reasoning_that_only_the_total_contains_is_output(details: object) -> None:
    """xAI, and Gemini in OpenAI's format: the price of a batch had a tenth of the tokens written."""
    usage = {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135, "details": details}
    for response in (answer({"usage": usage}), stream({"choices": [], "usage": usage})):
        assert used_tokens(None, response.content) == (32, 9 + 94)
        assert llm_tokens("output").settle(response) == 9 + 94
    assert llm_tokens("output").settle(answer({"usage": {"prompt_tokens": 8, "total_tokens": 8}})) == 0


def test_gemini_counts_its_reasoning_as_output() -> None:
    assert llm_tokens("input").settle(answer(GEMINI)) == 11
    assert llm_tokens("output").settle(answer(GEMINI)) == 7 + 5
    assert llm_tokens("input").settle(answer(INTERACTION)) == 11 + 2
    assert llm_tokens("output").settle(answer(INTERACTION)) == 7 + 5


@pytest.mark.no_cover
@pytest.mark.parametrize("event", [b"data:\n\n", b"\n\r", b"\r\r", b":\n"])
def test_millions_of_empty_events_are_not_read(event: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come in a few kilobytes, if they are compressed."""
    read = list[bytes]()

    def parsed(text: bytes) -> list[Any]:
        read.append(text)
        return []

    monkeypatch.setattr("stkai._llm_bodies.parsed", parsed)
    assert SETTLE(httpx.Response(200, content=b"data:\n\n" + event * 100_000)) is None
    assert len(read) == 1, "the body as a whole"


def test_of_millions_of_events_the_last_ones_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stkai._llm_bodies._MAX_EVENTS", 100)
    usage = b'data: {"usage": {"total_tokens": 7}}\n\n'
    assert SETTLE(httpx.Response(200, content=usage + b"data: {\n\n" * 1000)) is None
    assert SETTLE(httpx.Response(200, content=b"data: {\n\n" * 1000 + usage)) == 7


def test_a_compressed_answer_is_decoded_when_read() -> None:
    content = zlib.compress(json.dumps({"usage": {"total_tokens": 21}}).encode())
    assert SETTLE(httpx.Response(200, headers={"content-encoding": "deflate"}, content=content)) == 21
