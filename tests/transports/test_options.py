"""Options of a call, and of all calls within a `with stkai.options(...)` block."""

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import anyio
import httpx
import pytest

import stkai
from stkai import InvalidArgumentError, RequestOptions, RetryPolicy
from stkai.transports import Call, Context, LayerTransport
from stkai.transports._options import UNSET

from ..support.world import World

URL = "https://api.example.com/v1"


def options_of(**own: Any) -> RequestOptions:
    """The options of a call that begins here."""
    extensions = {"stkai": RequestOptions(**own)} if own else {}
    return Call.start(httpx.Request("POST", URL, extensions=extensions), 0.0).options


def test_a_block_sets_the_options_of_every_call_in_it() -> None:
    policy = RetryPolicy(7)
    with stkai.options(deadline=10.0, priority="low", cost=5, max_wait_time=2.0, retry=policy):
        assert options_of() == RequestOptions(
            deadline=10.0, priority="low", cost=5, max_wait_time=2.0, retry=policy
        )
        assert Call.start(httpx.Request("GET", URL), 100.0).deadline == 110.0
    assert options_of() == RequestOptions()


def test_the_options_of_a_call_go_before_those_of_the_block_field_by_field() -> None:
    with stkai.options(deadline=10.0, priority="low", retry=None):
        own = options_of(priority="normal", deadline=None)
        assert own == RequestOptions(priority="normal", deadline=None, retry=None)


def test_an_inner_block_goes_before_an_outer_one_field_by_field() -> None:
    with stkai.options(deadline=10.0, priority="low"):
        with stkai.options(deadline=None, cost=3):
            assert options_of() == RequestOptions(deadline=None, priority="low", cost=3)
        assert options_of() == RequestOptions(deadline=10.0, priority="low")


def test_a_block_can_be_kept_and_entered_again_also_within_itself_and_in_several_threads() -> None:
    block, outside = stkai.options(deadline=10.0), options_of()
    with stkai.options(cost=3):
        for _ in range(2):
            with block, stkai.options(deadline=20.0), block:
                assert (options_of().deadline, options_of().cost) == (10.0, 3)
            assert options_of() == RequestOptions(cost=3)
    with block, ThreadPoolExecutor(2) as pool:
        found = [pool.submit(_within, block) for _ in range(2)]
        assert [future.result() for future in found] == [(10.0, outside)] * 2
        assert options_of().deadline == 10.0
    assert options_of() == outside


def _within(block: Any) -> tuple[Any, RequestOptions]:
    with block:
        inside = options_of().deadline
    return inside, options_of()


def test_a_generator_that_is_closed_elsewhere_leaves_the_options_there_alone() -> None:
    def generate() -> Generator[None, None, None]:
        with stkai.options(deadline=10.0):
            yield

    started = generate()
    copy_context().run(next, started)
    with stkai.options(cost=3):
        started.close()
        assert options_of() == RequestOptions(cost=3)


def test_blocks_of_generators_may_end_in_any_order() -> None:
    def generate(**given: Any) -> Generator[None, None, None]:
        with stkai.options(**given):
            yield

    first, second = generate(deadline=10.0, cost=5), generate(cost=3)
    next(first)
    next(second)
    first.close()
    assert options_of() == RequestOptions(cost=3)
    second.close()
    assert options_of() == RequestOptions()


def test_a_block_ends_with_an_exception_too() -> None:
    with pytest.raises(KeyError), stkai.options(deadline=10.0):
        raise KeyError
    assert options_of() == RequestOptions()


def test_the_priority_is_normal_by_default() -> None:
    def priority(**own: Any) -> str:
        request = httpx.Request("POST", URL, extensions={"stkai": RequestOptions(**own)})
        return Call.start(request, 0.0).priority

    assert RequestOptions().priority is UNSET
    assert (priority(), priority(priority="low")) == ("normal", "low")
    with stkai.options(priority="low"):
        assert (priority(), priority(priority="normal")) == ("low", "normal")


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"deadline": 0}, "deadline"),
        ({"max_wait_time": "5"}, "max_wait_time"),
        ({"max_wait_time": 0}, r"max_wait_time must be a positive number of seconds \(0\.001 for no wait\)"),
        ({"cost": -1}, "cost"),
        ({"priority": "high"}, "priority"),
        ({"retry": 3}, "retry"),
        ({"retry": RetryPolicy}, "retry"),
        ({"retry": stkai.Retrying()}, "retry"),
    ],
)
def test_a_block_checks_its_options_as_a_call_does(given: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidArgumentError, match=word), stkai.options(**given):
        pass


def test_an_option_that_does_not_exist_is_a_type_error() -> None:
    wrong: Any = {"timeout": 5}
    with (
        pytest.raises(TypeError, match=r"options\(\) got an unexpected keyword argument 'timeout'"),
        stkai.options(**wrong),
    ):
        pass


def test_a_new_thread_begins_without() -> None:
    found: list[RequestOptions] = []
    with stkai.options(deadline=10.0):
        thread = threading.Thread(target=lambda: found.append(options_of()))
        thread.start()
        thread.join()
    assert found == [RequestOptions()]


@pytest.mark.worlds("asyncio", "trio")
async def test_a_task_takes_over_what_its_parent_has_and_keeps_its_own(world: World) -> None:
    found: list[RequestOptions] = []

    async def call() -> None:
        await world.sleep(stkai.testing.FakeClock(), 1.0)
        found.append(options_of())

    async with anyio.create_task_group() as group:
        with stkai.options(deadline=10.0):
            group.start_soon(call)
        group.start_soon(call)
    assert sorted(options.deadline is UNSET for options in found) == [False, True]


async def test_the_calls_of_an_sdk_follow_the_block(world: World) -> None:
    wire = world.wire(503, 503, 503, 200)
    stack = stkai.StackBuilder([stkai.transports.retry(RetryPolicy(5))], clock=stkai.testing.FakeClock())
    client = world.client(world.build(stack, wire))
    with stkai.options(retry=None):
        assert (await world.call(client.post, URL)).status_code == 503
    with stkai.options(deadline=1.0):
        assert (await world.call(client.post, URL)).status_code == 503, "the second delay would take too long"
    assert len(wire.requests) == 3


def test_the_block_holds_for_work_in_the_thread_of_a_call_with_a_deadline() -> None:
    found: list[RequestOptions] = []

    class Nested(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            found.append(options_of())
            return httpx.Response(200)

    with stkai.options(deadline=10.0):
        LayerTransport(Nested(), context=Context()).handle_request(httpx.Request("GET", URL))
    assert found == [RequestOptions(deadline=10.0)]


@pytest.mark.parametrize(
    ("verb", "name", "cure"),
    [
        ("post", "json", "pass the body as data="),
        ("post", "files", "httpx.Client"),
        ("post", "content", "httpx.Client"),
        ("get", "json", "a GET has no body here"),
        ("get", "data", "a GET has no body here"),
    ],
)
def test_an_argument_of_httpx_is_refused_with_what_works_instead(verb: str, name: str, cure: str) -> None:
    given: Any = {name: b"x"}
    with (
        stkai.build_client(auth=None, transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client,
        pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'; .*{cure}"),
    ):
        getattr(client, verb)("https://api.example.com/", **given)
