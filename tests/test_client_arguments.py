"""Bad arguments of the clients: an error that says what to do, before anything is sent."""

import traceback
from typing import Any

import httpx
import pytest

import stkai
from stkai import AsyncHttpClient, HttpClient

from .support.clients import URL, client_of
from .support.ids import spelled
from .support.wire import Wire
from .support.world import World

RELATIVE = ("", "/v1/things", "api.example.com/v1", "ftp://example.com", "https://")
BROKEN_URLS = ("http://exa\x00mple.com", "http://example.com:port", "http://xn--/", None, 5, [URL])
NO_TIMES = (0, -1, float("nan"), float("inf"), None, "30", True, httpx.Timeout(5))

BAD_INPUT: list[dict[str, Any]] = [
    *({"url": url} for url in RELATIVE + BROKEN_URLS),
    *({"timeout": seconds} for seconds in NO_TIMES),
    *({"headers": headers} for headers in ({"X": "Zoë"}, {"X": 1}, "X: 1", 5, {"X y": "1"}, {"": "1"})),
    *({"deadline": seconds} for seconds in (0, -1, "10")),
    {"max_wait_time": 0},
    {"retry": 3},
]


@pytest.mark.parametrize("arguments", BAD_INPUT, ids=repr)
async def test_an_invalid_argument_is_named_in_the_error_and_nothing_is_sent(
    world: World, arguments: dict[str, Any]
) -> None:
    wire = world.wire()
    (name,) = arguments
    for verb in ("get", "post", "post_stream"):
        with pytest.raises(stkai.InvalidArgumentError, match=name) as caught:
            await world.call(getattr(client_of(world, wire), verb), **{"url": URL, **arguments})
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, AssertionError)
    assert wire.requests == []


@pytest.mark.parametrize("thing", [None, URL, ("GET", URL)], ids=repr)
async def test_send_refuses_what_is_not_a_request(world: World, thing: object) -> None:
    wire = world.wire()
    with pytest.raises(stkai.InvalidArgumentError, match=r"a request must be an httpx\.Request, not "):
        await world.call(client_of(world, wire).send, thing)
    assert wire.requests == []


SECRET = "hunter2"


@pytest.mark.parametrize(
    "url", [f"https://me:{SECRET}@api.example.com/", f"https://me:{SECRET}/x@api.example.com/"]
)
@pytest.mark.parametrize("verb", ["get", "post", "post_stream", "send"])
async def test_a_url_with_credentials_is_refused_and_the_password_is_not_shown(
    world: World, verb: str, url: str
) -> None:
    wire = world.wire()
    if verb == "send" and "/x@" in url:
        return  # httpx cannot make such a request.
    target = httpx.Request("GET", url) if verb == "send" else url
    with pytest.raises(stkai.InvalidArgumentError, match="credentials") as caught:
        await world.call(getattr(client_of(world, wire), verb), target)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert wire.requests == []


@pytest.mark.parametrize(
    "value", [f"{SECRET}\n", f" {SECRET}", f"{SECRET}\r\nX: 1", f"{SECRET}é", f"{SECRET}\0"]
)
async def test_a_header_that_cannot_be_sent_is_named_and_its_value_is_not_shown(
    world: World, value: str
) -> None:
    wire = world.wire()
    with pytest.raises(stkai.InvalidArgumentError, match="headers must be") as caught:
        await world.call(client_of(world, wire).post, URL, headers={"X-Api-Key": value})
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert wire.requests == []


def circle() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


def abyss() -> list[Any]:
    items: list[Any] = []
    for _ in range(100_000):
        items = [items]
    return items


@pytest.mark.parametrize(
    "data", [object(), {1, 2}, float("nan"), "\ud800", b"x", circle(), {("a",): 1}], ids=spelled
)
@pytest.mark.parametrize("verb", ["post", "post_stream"])
async def test_data_that_is_not_json_is_an_error_and_nothing_is_sent(
    world: World, verb: str, data: Any
) -> None:
    wire = world.wire()
    with pytest.raises(stkai.InvalidArgumentError, match="data must be JSON-serializable"):
        await world.call(getattr(client_of(world, wire), verb), URL, data=data)
    assert wire.requests == []


def test_data_that_is_nested_too_deep_for_json_is_an_error() -> None:
    with pytest.raises(stkai.InvalidArgumentError, match="data must be JSON-serializable"):
        HttpClient(Wire()).post(URL, data=abyss())


@pytest.mark.parametrize("transport", [None, 5, "https://example.com", httpx.HTTPTransport, httpx.Client])
@pytest.mark.parametrize("kind", [HttpClient, AsyncHttpClient])
def test_a_client_needs_a_transport(kind: Any, transport: Any) -> None:
    with pytest.raises(stkai.ConfigurationError, match="BaseTransport"):
        kind(transport)


def test_a_client_needs_a_transport_of_its_kind() -> None:
    with pytest.raises(stkai.ConfigurationError, match=r"httpx\.BaseTransport"):
        HttpClient(httpx.AsyncHTTPTransport())  # type: ignore[arg-type]
    with pytest.raises(stkai.ConfigurationError, match=r"httpx\.AsyncBaseTransport"):
        AsyncHttpClient(httpx.HTTPTransport())  # type: ignore[arg-type]
