"""What differs between the SDKs: how to make a client, ask it and read its answer, and the names of its errors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anthropic
import cohere
import cohere.errors
import groq
import httpx
import httpx2
import openai
import together
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from ..support.world import World


@dataclass(frozen=True)
class Sdk:
    """One SDK on one of the two packages.

    Attributes:
        make: makes a client from a world, the server's origin, and an httpx client over a stack.
        ask: sends one message and returns the answer's text.
        stream: sends one message and returns the pieces of the text.
        errors: its own types, by what went wrong.
        path: of its chats.
    """

    name: str
    package: Any
    make: Callable[[World, str, Any], Any]
    ask: Callable[[World, Any, str], Any]
    stream: Callable[[World, Any, str], Any]
    errors: dict[str, type[Exception]]
    path: str = "/v1/chat/completions"

    def client(self, world: World, url: str, transport: Any) -> Any:
        """A client over a transport."""
        kind = world.pick(self.package.Client, self.package.AsyncClient)
        return self.make(world, url, kind(transport=transport))


def messages(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def each(world: World, stream: Any) -> list[Any]:
    """Everything that a stream yields."""
    return [item async for item in stream] if world.is_async else list(stream)


def maker(kinds: tuple[Any, Any], suffix: str = "") -> Callable[[World, str, Any], Any]:
    def make(world: World, url: str, http_client: Any) -> Any:
        kind = world.pick(*kinds)
        return kind(base_url=url + suffix, api_key="of the SDK", max_retries=0, http_client=http_client)

    return make


async def ask_completion(world: World, client: Any, text: str) -> Any:
    answer = await world.call(client.chat.completions.create, model="m", messages=messages(text))
    return answer.choices[0].message.content


async def stream_completion(world: World, client: Any, text: str) -> list[str]:
    create = client.chat.completions.create
    chunks = await each(world, await world.call(create, model="m", messages=messages(text), stream=True))
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]


async def ask_anthropic(world: World, client: Any, text: str) -> Any:
    answer = await world.call(client.messages.create, model="m", max_tokens=10, messages=messages(text))
    return answer.content[0].text


async def stream_anthropic(world: World, client: Any, text: str) -> list[str]:
    options = {"model": "m", "max_tokens": 10, "messages": messages(text), "stream": True}
    events = await each(world, await world.call(client.messages.create, **options))
    return [event.delta.text for event in events if event.type == "content_block_delta"]


def make_mistral(world: World, url: str, http_client: Any) -> Any:
    return Mistral(
        server_url=url,
        api_key="of the SDK",
        **({"async_client": http_client} if world.is_async else {"client": http_client}),
    )


async def ask_mistral(world: World, client: Any, text: str) -> Any:
    complete = world.pick(client.chat.complete, client.chat.complete_async)
    answer = await world.call(complete, model="m", messages=messages(text))
    return answer.choices[0].message.content


async def stream_mistral(world: World, client: Any, text: str) -> list[str]:
    stream = world.pick(client.chat.stream, client.chat.stream_async)
    events = await each(world, await world.call(stream, model="m", messages=messages(text)))
    contents = [event.data.choices[0].delta.content for event in events]
    return [content for content in contents if isinstance(content, str) and content]


def make_cohere(world: World, url: str, http_client: Any) -> Any:
    kind: Any = world.pick(cohere.ClientV2, cohere.AsyncClientV2)
    return kind(base_url=f"{url}/v1", api_key="of the SDK", max_retries=0, httpx_client=http_client)


async def ask_cohere(world: World, client: Any, text: str) -> Any:
    answer = await world.call(client.chat, model="m", messages=messages(text))
    return answer.message.content[0].text


async def stream_cohere(world: World, client: Any, text: str) -> list[str]:
    events = await each(world, client.chat_stream(model="m", messages=messages(text)))
    return [event.delta.message.content.text for event in events if event.type == "content-delta"]


def own(module: Any, broken: type[Exception] | None = None) -> dict[str, type[Exception]]:
    """The errors of the SDKs that Stainless generates; `broken` is that of a truncated stream, if not the SDK's own."""
    return {
        "refused": module.RateLimitError,
        "unavailable": module.InternalServerError,
        "unauthorized": module.AuthenticationError,
        "unreachable": module.APIConnectionError,
        "late": module.APITimeoutError,
        "broken": broken or module.APIConnectionError,
    }


def raw(package: Any) -> dict[str, type[Exception]]:
    """SDKs without their own type for a network failure pass on the package's."""
    return {
        "unreachable": package.TransportError,
        "late": package.TimeoutException,
        "broken": package.TransportError,
    }


OPENAI = (openai.OpenAI, openai.AsyncOpenAI)
SDKS = [
    Sdk("openai-httpx2", httpx2, maker(OPENAI, "/v1"), ask_completion, stream_completion, own(openai)),
    Sdk("openai-httpx", httpx, maker(OPENAI, "/v1"), ask_completion, stream_completion, own(openai)),
    Sdk(
        "anthropic",
        httpx2,
        maker((anthropic.Anthropic, anthropic.AsyncAnthropic)),
        ask_anthropic,
        stream_anthropic,
        own(anthropic, httpx2.TransportError),
        "/v1/messages",
    ),
    Sdk(
        "mistralai",
        httpx2,
        make_mistral,
        ask_mistral,
        stream_mistral,
        {**raw(httpx2), "refused": SDKError, "unavailable": SDKError, "unauthorized": SDKError},
    ),
    Sdk(
        "groq",
        httpx,
        maker((groq.Groq, groq.AsyncGroq), "/v1"),
        ask_completion,
        stream_completion,
        own(groq, httpx.TransportError),
        "/v1/openai/v1/chat/completions",
    ),
    Sdk(
        "together",
        httpx,
        maker((together.Together, together.AsyncTogether)),
        ask_completion,
        stream_completion,
        own(together, httpx.TransportError),
    ),
    Sdk(
        "cohere",
        httpx,
        make_cohere,
        ask_cohere,
        stream_cohere,
        {
            **raw(httpx),
            "refused": cohere.errors.TooManyRequestsError,
            "unavailable": cohere.errors.ServiceUnavailableError,
            "unauthorized": cohere.errors.UnauthorizedError,
        },
        "/v1/v2/chat",
    ),
]
