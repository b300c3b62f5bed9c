"""`send_all` with a journal, through an httpx client over a stack: only what was sent is unknown later."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

import stkai
from tests.support.world import World

from .test_send_all import collect, first, number_of, requests

pytestmark = pytest.mark.real_time


class Server:
    """Answers requests, and counts them by number; it may redirect request 1 to a place that is busy.

    Attributes:
        held: the paths of the requests that it does not answer before it is ready.
        is_ready: whether it answers them now.
    """

    def __init__(self, world: World, redirects: bool = False) -> None:
        self.world, self.redirects = world, redirects
        self.sent: Counter[int] = Counter()
        self.was_busy = False
        self.held = {"/0"}
        self.is_ready: Callable[[], object] = lambda: self.was_busy or not redirects

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/busy":
            self.was_busy = True
            return httpx.Response(503, headers={"Retry-After": "1"})
        number = number_of(request)
        self.sent[number] += 1
        if self.redirects and number == 1:
            return httpx.Response(307, headers={"Location": "/busy"})
        return httpx.Response(200)

    def handle(self, request: httpx.Request) -> httpx.Response:
        response = self.answer(request)
        while request.url.path in self.held and not self.is_ready():
            time.sleep(0.001)
        return response

    async def ahandle(self, request: httpx.Request) -> httpx.Response:
        response = self.answer(request)
        while request.url.path in self.held and not self.is_ready():  # noqa: ASYNC110 - it may change in a thread
            await anyio.sleep(0.001)
        return response

    def stack(self, **options: Any) -> Any:
        build = stkai.build_async_transport if self.world.is_async else stkai.build_transport
        wire = httpx.MockTransport(self.ahandle if self.world.is_async else self.handle)
        return build(auth=None, transport=wire, **options)

    def client(self, transport: Any) -> Any:
        kind: Any = self.world.pick(httpx.Client, httpx.AsyncClient)
        return kind(transport=transport, follow_redirects=True)


def check(response: httpx.Response) -> None:
    if not response.is_redirect:
        response.raise_for_status()


async def acheck(response: httpx.Response) -> None:
    check(response)


def codes(outcomes: list[stkai.Outcome]) -> dict[int, object]:
    """The status of each outcome, or the class of its error."""
    return {
        outcome.index: type(outcome.error) if outcome.response is None else outcome.response.status_code
        for outcome in outcomes
    }


async def test_what_waited_for_a_permit_is_sent_by_the_next_run(world: World, tmp_path: Path) -> None:
    path, server = tmp_path / "calls.journal", Server(world)
    limited = server.client(server.stack(rate_limit=stkai.TokenBucket(2, 3600)))
    taken = await first(world, 2, limited, requests(6), max_in_flight=5, journal=path)
    rest = await collect(world, server.client(server.stack()), requests(6), journal=path)
    assert codes([*taken, *rest]) == dict.fromkeys(range(6), 200)
    assert server.sent == dict.fromkeys(range(6), 1)


async def test_a_request_that_was_redirected_before_it_was_refused_is_unknown(
    world: World, tmp_path: Path
) -> None:
    path, server = tmp_path / "calls.journal", Server(world, redirects=True)
    mine = server.client(server.stack())
    taken = await first(world, 1, mine, requests(2), max_in_flight=2, journal=path)
    assert codes(taken) == {0: 200}
    rest = await collect(world, mine, requests(2), journal=path)
    assert codes(rest) == {1: stkai.OutcomeUnknownError}
    assert server.sent == {0: 1, 1: 1}


async def test_a_transport_around_the_stack_may_have_sent_what_waits_in_it(
    world: World, tmp_path: Path
) -> None:
    path, server, bucket = tmp_path / "calls.journal", Server(world), stkai.TokenBucket(1, 3600)
    limited = server.stack(rate_limit=bucket)
    server.held, server.is_ready = {"/0", "/1", "/2"}, lambda: bucket.waiting == 2

    class Around(httpx.AsyncBaseTransport, httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response: httpx.Response = limited.handle_request(request)
            return response

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response: httpx.Response = await limited.handle_async_request(request)
            return response

    await first(world, 1, server.client(Around()), requests(3), max_in_flight=3, journal=path)
    rest = await collect(world, server.client(server.stack()), requests(3), journal=path)
    assert list(codes(rest).values()) == [stkai.OutcomeUnknownError] * 2


async def test_a_request_that_a_client_makes_in_place_of_another_may_have_been_sent(
    world: World, tmp_path: Path
) -> None:
    path, server = tmp_path / "calls.journal", Server(world)
    server.is_ready = lambda: server.sent[0] == server.sent[1] == 1
    server.held = {"/0", "/1"}

    def made(request: httpx.Request) -> httpx.Request:
        return httpx.Request(request.method, request.url, content=request.content)

    class Client(httpx.Client):
        def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
            return super().send(made(request), **options)

    class AsyncClient(httpx.AsyncClient):
        async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
            return await super().send(made(request), **options)

    kind: Any = world.pick(Client, AsyncClient)
    mine = kind(transport=server.stack())
    taken = await first(world, 1, mine, requests(2), max_in_flight=2, journal=path)
    rest = await collect(world, mine, requests(2), journal=path)
    assert codes(rest) == {1 - taken[0].index: stkai.OutcomeUnknownError}
    assert server.sent == {0: 1, 1: 1}


async def test_after_a_run_the_redirect_in_an_outcome_can_be_followed(world: World, tmp_path: Path) -> None:
    server = Server(world, redirects=True)
    server.is_ready = lambda: True
    mine = server.client(server.stack(retry=None))
    mine.follow_redirects = False
    outcomes = await collect(world, mine, requests(2), journal=tmp_path / "calls.journal")
    moved = next(each.response for each in outcomes if each.index == 1)
    assert moved is not None
    assert (await world.call(mine.send, moved.next_request)).status_code == 503


@pytest.mark.parametrize("path", ["calls.journal", None])
async def test_after_a_run_the_request_of_an_error_or_an_answer_can_be_sent_again(
    world: World, tmp_path: Path, path: str | None
) -> None:
    server = Server(world, redirects=True)
    server.is_ready = lambda: True
    mine = server.client(server.stack(retry=None))
    mine.event_hooks = {"response": [world.pick(check, acheck)]}
    outcomes = await collect(world, mine, requests(2), journal=path and tmp_path / path)
    failed = next(each.error for each in outcomes if each.index == 1)
    assert isinstance(failed, httpx.HTTPStatusError)
    mine.event_hooks = {}
    assert (await world.call(mine.send, failed.request)).status_code == 503
