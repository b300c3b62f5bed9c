"""What a call to a language model costs, before it is sent and after it is answered."""

import json
import math
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stkai
from stkai.costs import llm_tokens

URL = "https://api.example.com/v1/chat/completions"
COST, SETTLE = llm_tokens()["cost"], llm_tokens()["settle"]

PICTURE = "iVBORw0KGgo" + "A" * 40_000
WRAPPED = "\r\n".join(PICTURE[place : place + 76] for place in range(0, len(PICTURE), 76)) + "\r\n"


def request(body: object) -> httpx.Request:
    return httpx.Request("POST", URL, json=body)


def chat(content: object, **more: object) -> dict[str, object]:
    return {"model": "m-1", "messages": [{"role": "user", "content": content}], **more}


def test_llm_tokens_can_be_passed_to_a_stack_as_a_type_checker_reads_it() -> None:
    wire = httpx.MockTransport(lambda _: httpx.Response(200))
    limit = stkai.TokenBucket(60, 60, max_cost=1000)
    with stkai.build_client(auth=None, rate_limit=limit, transport=wire, **llm_tokens()) as client:
        assert client.post("https://api.example.com/", {"max_tokens": 5}).is_success


def test_llm_tokens_returns_cost_and_settle() -> None:
    assert set(llm_tokens()) == {"cost", "settle"}
    assert stkai.costs.llm_tokens is llm_tokens


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (chat("x" * 4000), 1000),
        (chat("x" * 4000, max_tokens=500), 1500),
        (chat("x" * 4000, max_completion_tokens=500), 1500),
        (chat("x" * 4000, max_output_tokens=500), 1500),
        (chat("x" * 4000, max_tokens=100, max_completion_tokens=500), 1500),
        (chat("x" * 4000, max_tokens=500, n=3), 2500),
        (chat("x" * 4000, max_tokens=500, n=None), 1500),
        (chat("x" * 4000, n=3), 1000),
        ({"prompt": "x" * 400, "max_tokens": 10, "n": 2, "best_of": 5}, 150),
        ({"prompt": ["x" * 400, "y" * 400], "max_tokens": 10, "best_of": 5}, 300),
        ({"prompt": [[15, 2000, 7], [1, 2]], "max_tokens": 10}, 25),
        ({"prompt": [15, 2000, 7], "max_tokens": 10}, 13),
        ({"prompt": [{"content": "x" * 400}, {"content": "y" * 400}], "max_tokens": 10}, 210),
        (chat([{"type": "text", "text": "x" * 400}, {"type": "text", "text": "y" * 400}]), 200),
        ({"model": "m-1", "system": "x" * 400, "messages": [], "max_tokens": 10}, 110),
        ({"model": "m-1", "instructions": "x" * 400, "input": "y" * 400}, 200),
        ({"input": [[15, 2000, 7], [1, 2]]}, 5),
        ({"streaming": True, "user_prompt": "x" * 800, "upload_ids": ["0" * 36]}, 200),
        (chat("é" * 4000), 1000),
        ({"contents": [{"role": "user", "parts": [{"text": "x" * 400}]}]}, 100),
        ({"contents": [{"parts": [{"text": "x" * 400}]}], "generationConfig": {"maxOutputTokens": 50}}, 150),
        (
            {"contents": "x" * 400, "generationConfig": {"maxOutputTokens": 50, "candidateCount": 4}},
            300,
        ),
        ({"contents": [{"parts": [{"text": "x" * 400}]}], "generationConfig": None}, 100),
        ({"messages": [{"content": [{"text": "x" * 400}]}], "inferenceConfig": {"maxTokens": 50}}, 150),
        ({"model": "m-1", "input": "x" * 400, "generation_config": {"max_output_tokens": 50}}, 150),
    ],
)
def test_the_estimate_is_the_text_of_the_body_plus_the_most_tokens_of_the_answer(
    body: object, tokens: float
) -> None:
    assert COST(request(body)) == tokens


@pytest.mark.parametrize(
    "path",
    [
        "/v1/batches",
        "/v1/responses/input_tokens",
        "/openai/batches",
        "/v1/messages/batches",
        "/v1/messages/count_tokens",
        "/v1beta/models/g-1:countTokens",
        "/v1beta/models/g-1:batchGenerateContent",
        "/upload/v1beta/files",
        "/v1/batch/jobs",
    ],
)
def test_a_batch_of_the_provider_an_upload_and_a_count_of_tokens_cost_nothing(path: str) -> None:
    """They have limits of their own; a batch with all of its requests in its body cost the whole limit."""
    body = {"requests": [{"params": chat("x" * 4000, max_tokens=500)}] * 100, "max_tokens": 500}
    for count in ("total", "input", "output"):
        kind: Any = count
        assert (
            llm_tokens(kind).estimate(httpx.Request("POST", f"https://api.example.com{path}", json=body)) == 0
        )


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
        {"type": "image_url", "image_url": f"data:image/png;base64,{PICTURE}"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
        {"type": "input_audio", "input_audio": {"data": PICTURE, "format": "wav"}},
        {"type": "file", "file": {"file_data": PICTURE, "file_id": "f" * 400}},
        {"image": {"format": "png", "source": {"bytes": PICTURE}}},
        {"type": "text", "text": f"![it](data:image/png;base64,{PICTURE})"},
        {"type": "image_url", "image_url": f"data:image/png;base64,{WRAPPED}"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": WRAPPED}},
    ],
)
def test_a_base64_image_does_not_count_as_text(part: object) -> None:
    body = chat([{"type": "text", "text": "x" * 400}, part], max_tokens=50)
    assert 150 <= COST(request(body)) <= 160


def test_text_that_looks_like_base64_counts_as_text() -> None:
    assert COST(request(chat("A" * 40_000))) == 10_000


def test_line_breaks_that_follow_base64_and_text_that_follows_these_are_read_once() -> None:
    """Twice as many took four times as long, in the stream of a server too: hours, for a megabyte."""
    text = "A" * 64 + "\n" * 1_000_000 + "!"
    assert COST(request({"data": text})) == len(text) / 4
    event = json.dumps({"choices": [{"delta": {"data": text}}]})
    assert SETTLE(httpx.Response(200, content=f"data: {event}\n\n")) == len(text) / 4


def unread() -> Iterator[bytes]:
    yield b"{}"


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        ({"content": b""}, 0),
        ({"content": unread()}, 0),
        ({"content": unread(), "headers": {"content-length": "4000"}}, 1000),
        ({"content": b"x" * 400}, 100),
        ({"content": b"\xff\xfe" * 200}, 100),
        ({"content": b"x" * 400, "headers": {"content-type": "audio/mpeg"}}, 0),
        ({"data": {"prompt": "x" * 393}}, 100),
        ({"files": {"file": b"x" * 4000}}, 0),
        ({"content": b"[" * 100_000}, 25_000),
        ({"content": b'{"max_tokens": NaN}'}, 0),
        ({"content": b'{"max_tokens": 1e999}'}, 0),
        ({"json": {"max_tokens": 10**400}}, 0),
        ({"json": {"max_tokens": -5}}, 0),
        ({"json": {"max_tokens": True}}, 0),
        ({"json": {"max_tokens": "12"}}, 0.5),
        ({"json": None}, 0),
        ({"json": "x" * 40}, 10),
    ],
)
def test_any_body_gives_a_finite_number(arguments: dict[str, Any], tokens: float) -> None:
    assert COST(httpx.Request("POST", URL, **arguments)) == tokens


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["usage", "tokens", "max_tokens"]) | st.text(), inner)
    ),
)


@given(json_values | st.binary())
def test_no_body_or_answer_breaks_the_arithmetic(body: object) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert 0 <= COST(httpx.Request("POST", URL, content=content)) < math.inf
    for data in (content, b"data: " + content + b"\n\n"):
        used = SETTLE(httpx.Response(200, content=data))
        assert used is None or 0 <= used < math.inf


def test_a_custom_tokenizer_counts_the_text_and_falls_back_to_the_estimate() -> None:
    def tokenizer(text: str) -> list[str]:
        if "?" in text:
            raise ValueError("cannot read it")
        return text.split()

    cost = llm_tokens(tokenizer=tokenizer)["cost"]
    assert cost(request(chat("a long-winded sentence", max_tokens=10))) == 13
    assert cost(request(chat("what?" * 8, max_tokens=10))) == 20
    counting = llm_tokens(tokenizer=lambda text: len(tokenizer(text)))["cost"]
    assert counting(request(chat("a long-winded sentence", max_tokens=10))) == 13
    of_code: Any = lambda text: len(text) / 2  # noqa: E731 - a number need not be whole
    assert llm_tokens(tokenizer=of_code)["cost"](request(chat("x = [1, 2]!", max_tokens=10))) == 15.5


def test_a_tokenizer_that_cannot_be_called_is_an_error() -> None:
    encoding: Any = object()  # tiktoken's, without `.encode_ordinary`: every text would be estimated
    with pytest.raises(
        stkai.ConfigurationError, match=r"must be a function, such as encoding\.encode_ordinary"
    ):
        llm_tokens(tokenizer=encoding)


def test_an_unknown_count_is_an_error_that_names_those_there_are() -> None:
    unknown: Any = "all"
    with pytest.raises(
        stkai.ConfigurationError, match=r"count must be one of 'total', 'input', 'output', not 'all'"
    ):
        llm_tokens(unknown)


def test_responses_of_both_packages_are_read_the_same_way() -> None:
    other: Any = import_module("httpx2")
    assert COST(other.Request("POST", URL, json=chat("x" * 40))) == 10
    assert COST(other.Request("POST", URL, content=unread())) == 0
    assert SETTLE(other.Response(200, json={"usage": {"total_tokens": 21}})) == 21
