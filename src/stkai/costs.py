"""The cost of a call, for limiters that count units besides requests, such as a language model's tokens per minute.

A cost is needed twice: as an estimate before the request is sent, and as the real number when the answer has been read.
`llm_tokens()` gives both for the bodies and usage reports of OpenAI, Anthropic, Gemini, Bedrock, Mistral, Cohere and
StackSpot, and of compatible servers:

    build_client(rate_limit=TokenBucket(60, 60, max_cost=100_000, cost=llm_tokens()))
"""

import re
from collections.abc import Callable, Sized
from contextlib import suppress
from itertools import chain
from typing import Any, Final

import httpx

from ._checks import check_choice
from ._errors import ConfigurationError
from ._families import alike
from ._llm_bodies import Count, delta_texts, messages_in, number_of, parsed, reported_in, texts_in, used_of
from ._process import raise_interrupt

__all__ = ["LlmTokens", "llm_tokens", "model_of"]
__dir__ = __all__.copy

CHARACTERS_PER_TOKEN: Final = 4  # OpenAI's rule of thumb: https://help.openai.com/en/articles/4936856

_MOST_OUTPUT: Final = re.compile("max(?:_completion|_output)?_tokens|max(?:Output)?Tokens")
_ANSWERS: Final = frozenset({"n", "best_of", "candidateCount"})  # How many answers to one prompt.
_OPTIONS: Final = ("generationConfig", "generation_config", "inferenceConfig")  # Gemini's, and Bedrock's.

_OTHER_LIMITS: Final = re.compile(
    r"(?:/batches|/batch/jobs|:batchGenerateContent|[/:]count_?[tT]okens|/responses/input_tokens"
    r"|/upload/[^/]+/files)/?$"
)
"""Paths that start a batch or only count tokens, which OpenAI, Anthropic, Gemini and Mistral limit on their own, and of
uploads to Gemini, whose SDK calls any file JSON."""

_TEXTUAL: Final = re.compile(r"text/|application/(?:[\w.+-]*json|x-www-form-urlencoded)", re.IGNORECASE)


class CountedFromText(float):
    """Tokens counted from the text of a stream that reported no usage because the request did not ask for it."""


class LlmTokens(dict[str, Any]):  # Any: type checkers compare what `**` unpacks with every keyword.
    """Counts the tokens of calls to a language model: the `cost=` of a limiter.

    As `**llm_tokens()`, it is the `cost=` and `settle=` of a stack.
    """

    def __init__(self, count: Count, tokenizer: Callable[[str], Sized | float] | None) -> None:
        super().__init__(cost=self.estimate, settle=self.settle)
        self.count, self._tokenizer = count, tokenizer

    def estimate(self, request: httpx.Request) -> float:
        """The tokens that a request may use; if its body cannot be inspected, an estimate by its length."""
        if _OTHER_LIMITS.search(request.url.path):
            return 0.0
        content = _content(request)
        bodies = parsed(content or b"")
        if not bodies:
            return 0.0 if self.count == "output" else _tokens_of_length(request, content)
        body, tokens = bodies[0], 0.0
        if self.count != "output":
            tokens += sum(1.0 if text is None else self._tokens(text) for text in texts_in(body))
        if self.count != "input" and isinstance(body, dict):
            places = [body, *(body.get(name) for name in _OPTIONS)]
            items = chain.from_iterable(place.items() for place in places if isinstance(place, dict))
            numbers = {name: number_of(value) or 0.0 for name, value in items}
            most = [value for name, value in numbers.items() if _MOST_OUTPUT.fullmatch(name)]
            answers = max(1.0, *(numbers.get(name, 0.0) for name in _ANSWERS))
            prompts = body.get("prompt")
            if isinstance(prompts, list) and any(isinstance(part, str | list) for part in prompts):
                answers *= len(prompts)  # A list of numbers is one prompt, and so is one of messages.
            tokens += max(most, default=0.0) * answers
        return tokens

    def settle(self, response: httpx.Response) -> float | None:
        """The tokens that an answer reports, or those of the text that a stream has sent; None if there is neither.

        A refused request (4xx) costs nothing, unless it reports otherwise; limiters handle a 429 themselves.
        """
        is_refused = response.is_client_error and response.status_code != httpx.codes.TOO_MANY_REQUESTS
        unreported = 0.0 if is_refused else None
        messages = messages_in(response.content)
        reported = reported_in(messages)
        pieces = [texts for message in messages if (texts := delta_texts(message)) is not None]
        text = "".join(chain.from_iterable(pieces))
        types = [each.get("type") for each in messages if each.get("message") or each.get("usage")]
        if "message_start" in types and "message_delta" not in types:
            # Anthropic's streams report the input first and the output last; this one was closed before its end.
            reported["output_tokens"] = max(reported.get("output_tokens", 0.0), self._tokens(text))
        used = used_of(reported, self.count)
        if used is not None:
            return used
        if not pieces:
            return unreported
        request = None
        with suppress(RuntimeError):  # A response that was constructed by hand may have none.
            request = response.request
        arrived = 0.0 if self.count == "input" else self._tokens(text)
        if self.count != "output" and request is not None:
            arrived += LlmTokens("input", self._tokenizer).estimate(request)
        is_chat = any("choices" in message for message in messages)
        return CountedFromText(arrived) if is_chat and not _asks_for_usage(request) else arrived

    def _tokens(self, text: str) -> float:
        if self._tokenizer is not None:
            try:
                tokens = self._tokenizer(text)
                return float(len(tokens) if isinstance(tokens, Sized) else tokens)
            except Exception as error:  # noqa: BLE001 - user code; a rough estimate is better than a call that fails
                raise_interrupt(error)
        return len(text) / CHARACTERS_PER_TOKEN

    def __repr__(self) -> str:
        return f"llm_tokens({self.count!r})"


def llm_tokens(count: Count = "total", tokenizer: Callable[[str], Sized | float] | None = None) -> LlmTokens:
    """Count the tokens of language models: `TokenBucket(500, 60, max_cost=200_000, cost=llm_tokens())`.

    The estimate is one token for every four characters of text in the body, plus the longest possible answer:
    `max_tokens`, `max_completion_tokens`, `max_output_tokens`, Gemini's `maxOutputTokens` or Bedrock's `maxTokens`, as
    many times as there may be answers (`n`, `best_of`, `candidateCount`, several prompts). It leaves out images and
    other attachments. The real cost is the `usage` of the answer (StackSpot's `tokens`, Gemini's `usageMetadata`),
    streamed or not. A stream that reports none is settled by the text that arrived.

    Args:
        count: "total", or "input" or "output" alone, for services that limit them separately.
        tokenizer: returns the tokens of a text, or their number, if four characters per token is not accurate
            enough; for example `tiktoken.get_encoding("o200k_base").encode_ordinary`. Texts that it cannot read are
            estimated.

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


def _body_of(request: httpx.Request) -> dict[str, Any]:
    """The JSON object in a request's body; empty if there is none."""
    return next((body for body in parsed(_content(request) or b"") if isinstance(body, dict)), {})


def _tokens_of_length(request: httpx.Request, content: bytes | None) -> float:
    if not _TEXTUAL.match(request.headers.get("content-type", "text/plain")):
        return 0.0
    length = int(request.headers.get("content-length", 0)) if content is None else len(content)
    return length / CHARACTERS_PER_TOKEN


def _asks_for_usage(request: httpx.Request | None) -> bool:
    """Whether a request asked for the usage of its stream, which some servers do not report."""
    options = None if request is None else _body_of(request).get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True
