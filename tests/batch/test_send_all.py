"""`send_all` in threads and `asend_all` in tasks: outcomes as they come, and nothing read too far ahead."""

import asyncio
import errno
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec

import anyio
import httpx
import pytest
import trio

import stkai
from stkai._abandonable import idle_workers
from stkai._batch.append_file import WriteError
from stkai._batch.journal import Journal
from stkai.testing import FakeClock

from ..support.threads import wait_until
from ..support.world import World

URL = "https://api.test/{}"


def requests(count: int) -> list[httpx.Request]:
    return [httpx.Request("POST", URL.format(number), json={"n": number}) for number in range(count)]


def number_of(request: httpx.Request) -> int:
    return int(request.url.path[1:])


def transport(world: World, answer: Callable[[int], Any]) -> Any:
    """A wire that answers with a function of the number in the path, which returns a response, an error or JSON."""

    def handle(request: httpx.Request) -> httpx.Response:
        result = answer(number_of(request))
        if isinstance(result, BaseException):
            raise result
        return result if isinstance(result, httpx.Response) else httpx.Response(200, json={"n": result})

    async def ahandle(request: httpx.Request) -> httpx.Response:
        return handle(request)

    return httpx.MockTransport(ahandle if world.is_async else handle)


def client(world: World, answer: Callable[[int], Any] = int, **kwargs: Any) -> Any:
    build = stkai.build_async_client if world.is_async else stkai.build_client
    return build(auth=None, transport=transport(world, answer), **kwargs)


async def _loop(
    world: World, client: Any, requests: Any, **kwargs: Any
) -> AsyncGenerator[stkai.Outcome, None]:
    if world.is_async:
        async with aclosing(stkai.asend_all(client, requests, **kwargs)) as outcomes:
            async for outcome in outcomes:
                yield outcome
    else:
        with closing(stkai.send_all(client, requests, **kwargs)) as some:
            for outcome in some:
                yield outcome


def loop(*given: Any, **kwargs: Any) -> aclosing[AsyncGenerator[stkai.Outcome, None]]:
    """A loop over the outcomes, in the sync world as well, that is closed however it ends."""
    return aclosing(_loop(*given, **kwargs))


async def collect(world: World, client: Any, requests: Any, **kwargs: Any) -> list[stkai.Outcome]:
    async with loop(world, client, requests, **kwargs) as outcomes:
        return [outcome async for outcome in outcomes]


async def first(world: World, count: int, client: Any, requests: Any, **kwargs: Any) -> list[stkai.Outcome]:
    """So many outcomes; then the loop is closed."""
    taken: list[stkai.Outcome] = []
    async with loop(world, client, requests, **kwargs) as outcomes:
        async for outcome in outcomes:
            taken.append(outcome)
            if len(taken) == count:
                break
    return taken


def lazily(requests: Iterable[httpx.Request], world: World) -> Any:
    """The requests, as an async iterable in async worlds."""

    async def each() -> AsyncIterator[httpx.Request]:
        for request in requests:
            yield request

    return each() if world.is_async else iter(requests)


@pytest.mark.parametrize("lazy", [False, True])
async def test_each_request_has_one_outcome_with_its_index(world: World, lazy: bool) -> None:
    given = requests(50)
    outcomes = await collect(world, client(world), lazily(given, world) if lazy else given, max_in_flight=7)
    assert sorted(outcome.index for outcome in outcomes) == list(range(50))
    for outcome in outcomes:
        assert outcome.request is given[outcome.index]
        assert outcome.error is None
        assert outcome.response is not None
        assert outcome.response.json() == {"n": outcome.index}


async def test_a_failure_is_an_outcome_and_stops_nothing(world: World) -> None:
    def answer(number: int) -> Any:
        return httpx.ReadError("gone") if number == 3 else ValueError("odd") if number == 4 else number

    outcomes = await collect(world, client(world, answer, retry=None), requests(6))
    failed = {outcome.index: outcome.error for outcome in outcomes if outcome.error is not None}
    assert {index: type(error).__name__ for index, error in failed.items()} == {
        3: "ReadError",
        4: "ValueError",
    }
    assert all((outcome.response is None) == (outcome.error is not None) for outcome in outcomes)


async def test_anything_but_a_request_fails_alone(world: World) -> None:
    outcomes = await collect(world, client(world), [*requests(1), "https://api.test/1"])
    assert isinstance({outcome.index: outcome.error for outcome in outcomes}[1], stkai.InvalidArgumentError)


async def test_clients_of_httpx_send_as_well(world: World) -> None:
    plain = world.client(transport(world, int), base_url="https://api.test")
    given = [plain.build_request("POST", f"/{number}") for number in range(3)]
    outcomes = await collect(world, plain, given)
    assert {outcome.index: outcome.response and outcome.response.json() for outcome in outcomes} == {
        number: {"n": number} for number in range(3)
    }
    await world.close(plain)


def test_clients_of_httpx2_and_of_the_api_reference_send_as_well() -> None:
    httpx2 = pytest.importorskip("httpx2")
    wire = httpx2.MockTransport(lambda request: httpx2.Response(200))
    with httpx2.Client(transport=wire) as other:
        (outcome,) = stkai.send_all(other, [other.build_request("GET", URL)])
        assert outcome.response is not None

    class Own(stkai.HttpClient):
        def get(self, url: str, headers: Any = None, timeout: float = 30, **_: Any) -> httpx.Response:
            return httpx.Response(200, text=f"GET {url} {timeout:g}")

        def post(self, url: str, data: Any = None, headers: Any = None, timeout: float = 30, **_: Any) -> Any:
            return httpx.Response(200, json={"data": data, "x": headers["x"]})

    limited = stkai.TokenBucketRateLimitedHttpClient(Own(), 100, 1.0)
    given = [
        httpx.Request("GET", URL),
        httpx.Request("POST", URL, json=[1], headers={"X": "y"}),
        httpx.Request("PUT", URL),
        httpx.Request("POST", URL, content=b"text"),
        httpx.Request("POST", URL, headers={"x": "z"}),
    ]
    outcomes = {outcome.index: outcome for outcome in stkai.send_all(limited, given)}
    assert outcomes[0].response is not None
    assert outcomes[0].response.text == f"GET {httpx.URL(URL)} 30"
    assert outcomes[1].response is not None
    assert outcomes[1].response.json() == {"data": [1], "x": "y"}
    assert outcomes[4].response is not None
    assert outcomes[4].response.json() == {"data": None, "x": "z"}
    assert {type(outcomes[index].error) for index in (2, 3)} == {stkai.InvalidArgumentError}


async def test_at_most_max_in_flight_requests_are_read_ahead(world: World) -> None:
    for lazy in (False, True):
        read = 0

        def reading() -> Iterator[httpx.Request]:
            nonlocal read
            for request in requests(30):
                read += 1
                yield request

        source = lazily(reading(), world) if lazy else reading()
        handed_out = 0
        async with loop(world, client(world), source, max_in_flight=4) as outcomes:
            async for _ in outcomes:
                handed_out += 1
                for _ in range(5 if world.is_async else 0):
                    await anyio.lowlevel.checkpoint()
                assert read <= handed_out + 4 + world.is_async
        assert handed_out == 30


async def test_at_most_max_in_flight_requests_are_in_flight(world: World) -> None:
    lock, here, most = threading.Lock(), 0, 0

    class Counting(httpx.AsyncBaseTransport, httpx.BaseTransport):
        def _enter(self) -> None:
            nonlocal here, most
            with lock:
                here += 1
                most = max(most, here)

        def _leave(self) -> httpx.Response:
            nonlocal here
            with lock:
                here -= 1
            return httpx.Response(200)

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            self._enter()
            return self._leave()

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self._enter()
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            return self._leave()

    assert len(await collect(world, world.client(Counting()), requests(40), max_in_flight=3)) == 40
    assert 1 <= most <= 3
    if world.is_async:
        assert most == 3


async def each(world: World, requests: Any, body: Callable[[stkai.Outcome], None]) -> None:
    async with loop(world, client(world), requests, max_in_flight=2) as outcomes:
        async for outcome in outcomes:
            body(outcome)


async def test_an_error_from_the_iterable_is_raised_after_the_outcomes(world: World) -> None:
    def reading() -> Iterator[httpx.Request]:
        yield from requests(3)
        raise LookupError("no more")

    for lazy in (False, True):
        seen: list[stkai.Outcome] = []
        source = lazily(reading(), world) if lazy else reading()
        with pytest.raises(LookupError, match="no more"):
            await each(world, source, seen.append)
        assert sorted(outcome.index for outcome in seen) == [0, 1, 2]


async def test_an_error_in_the_loop_is_raised_unchanged(world: World) -> None:
    def fail(_: stkai.Outcome) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await each(world, requests(5), fail)


class Stop(BaseException):
    """Not an Exception, like the failures of pytest."""


async def test_a_base_exception_ends_the_loop_and_reaches_the_caller(world: World) -> None:
    with pytest.raises(Stop):
        await collect(world, client(world, lambda _: Stop(), retry=None), requests(2))


async def test_mocks_of_all_clients_send(world: World) -> None:
    answer = httpx.Response(200)
    kinds: list[type] = [stkai.HttpClient, httpx.Client]
    if world.is_async:
        kinds = [stkai.AsyncHttpClient, httpx.AsyncClient]
    for kind in kinds:
        mock = create_autospec(kind, instance=True)
        mock.send.return_value = mock.post.return_value = answer
        (outcome,) = await collect(world, mock, requests(1))
        assert outcome.response is answer


class Held(httpx.AsyncBaseTransport):
    """Answers the first request, and holds all others until they are cancelled."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.running = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if number_of(request) == 0:
            return httpx.Response(200)
        self.running += 1
        try:
            await anyio.Event().wait()
        finally:
            self.cancelled += 1
        raise AssertionError


@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.parametrize("lazy", [False, True])
async def test_closing_cancels_what_is_in_flight(world: World, lazy: bool) -> None:
    held = Held()
    given = requests(20)
    async with httpx.AsyncClient(transport=held) as plain:
        outcomes = stkai.asend_all(plain, lazily(given, world) if lazy else given, max_in_flight=4)
        first = await anext(outcomes)
        assert first.index == 0
        await outcomes.aclose()
        assert held.running == held.cancelled
        assert held.running >= 3
        with pytest.raises(StopAsyncIteration):
            await anext(outcomes)


@pytest.mark.worlds("asyncio", "trio")
async def test_cancelling_the_caller_cancels_what_is_in_flight(world: World) -> None:
    held = Held()
    async with httpx.AsyncClient(transport=held) as plain:
        seen = 0
        with anyio.CancelScope() as scope:
            async for _ in stkai.asend_all(plain, requests(3)):
                seen += 1

                async def cancel() -> None:
                    scope.cancel()

                async with anyio.create_task_group() as group:
                    group.start_soon(cancel)
        assert scope.cancelled_caught
        assert seen == 1


@pytest.mark.worlds("asyncio", "trio")
async def test_the_generator_may_be_driven_from_several_tasks_and_left_alone(world: World) -> None:
    outcomes = stkai.asend_all(client(world), requests(10), max_in_flight=2)
    seen = []

    async def take() -> None:
        seen.append((await anext(outcomes)).index)

    for _ in range(3):
        async with anyio.create_task_group() as group:
            group.start_soon(take)
    await outcomes.aclose()
    assert len(set(seen)) == 3


def test_closing_the_sync_generator_waits_for_what_is_in_flight_and_sends_nothing_more() -> None:
    sent: list[int] = []

    def answer(number: int) -> int:
        sent.append(number)
        return number

    world = World("sync")
    outcomes = stkai.send_all(client(world, answer), requests(20), max_in_flight=4)
    next(outcomes)
    outcomes.close()
    before = list(sent)
    assert len(before) <= 5
    assert sent == before


AFTER_MAIN = """
import threading, httpx, stkai

main = threading.main_thread()
wire = httpx.MockTransport(lambda request: main.join() or httpx.Response(200))
client = stkai.build_client(auth=None, transport=wire)


def send():
    requests = [httpx.Request("POST", "https://h/") for _ in range(20)]
    print(sum(outcome.response is not None for outcome in stkai.send_all(client, requests, max_in_flight=4)))


threading.Thread(target=send).start()
"""

LEFT_OPEN = """
import httpx, stkai

wire = httpx.MockTransport(lambda request: httpx.Response(200))
client = stkai.build_client(auth=None, rate_limit=stkai.TokenBucket(1, 3600), transport=wire)
outcomes = stkai.send_all(client, [httpx.Request("POST", "https://h/") for _ in range(20)])
for outcome in outcomes:
    print(outcome.response.status_code)
    break
"""


@pytest.mark.real_time
@pytest.mark.parametrize(("program", "printed"), [(AFTER_MAIN, "20"), (LEFT_OPEN, "200")])
def test_a_program_may_go_on_in_a_thread_and_may_end_with_an_open_loop(program: str, printed: str) -> None:
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (run.stdout.strip(), run.stderr) == (printed, "")


def threads_of_loops() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stkai.send_all"]


@pytest.mark.no_cover
def test_calls_that_end_at_once_share_a_few_threads() -> None:
    most = 0

    def answer(number: int) -> int:
        nonlocal most
        most = max(most, len(threads_of_loops()))
        return number

    sent = stkai.send_all(client(World("sync"), answer), requests(500), max_in_flight=500)
    assert len(list(sent)) == 500
    assert most < 100  # Usually one or two.


@pytest.mark.real_time
def test_a_loop_goes_on_with_the_threads_that_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    start, threads, together = threading.Thread.start, itertools.count(), threading.Barrier(3)

    def start_three(thread: threading.Thread) -> None:
        if next(threads) >= 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    def answer(number: int) -> int:
        together.wait(10)
        return number

    monkeypatch.setattr(threading.Thread, "start", start_three)
    monkeypatch.setattr("stkai._abandonable.IDLE_TIMEOUT", 30)  # None ends between two calls.
    sent = stkai.send_all(client(World("sync"), answer), requests(21), max_in_flight=5)
    assert [outcome.error for outcome in sent] == [None] * 21
    wait_until(lambda: not threads_of_loops())
    idle_workers.drop()
    with pytest.raises(stkai.StkaiError, match="can't start new thread"):
        next(stkai.send_all(client(World("sync")), requests(1)))


def test_an_interrupted_end_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = stkai.send_all(client(World("sync")), requests(5), max_in_flight=2)
    next(sent)
    monkeypatch.setattr("stkai._abandonable.AbandonableWork.wait", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sent.close()
    del sent
    gc.collect()
    for thread in threads_of_loops():
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.real_time
def test_an_interrupt_drops_what_waits_for_a_permit() -> None:
    sent: list[int] = []
    bucket = stkai.TokenBucket(1, 3600)

    def answer(number: int) -> int:
        sent.append(number)
        return number

    def interrupted() -> Iterator[httpx.Request]:
        yield from requests(2)
        wait_until(lambda: bucket.waiting > 0)
        raise KeyboardInterrupt

    limited = client(World("sync"), answer, rate_limit=bucket)
    with pytest.raises(KeyboardInterrupt):
        list(stkai.send_all(limited, interrupted(), max_in_flight=3))
    assert len(sent) == 1


@pytest.mark.real_time
def test_close_ends_the_waits_of_a_client_of_httpx_over_a_stack() -> None:
    sent: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(number_of(request))
        return httpx.Response(200)

    bucket = stkai.TokenBucket(1, 1.0)
    stack = stkai.build_transport(auth=None, rate_limit=bucket, transport=httpx.MockTransport(answer))
    with httpx.Client(transport=stack) as mounted:
        mine = requests(4)
        outcomes = stkai.send_all(mounted, mine, max_in_flight=3)
        response = next(outcomes).response
        assert response is not None
        assert response.request is mine[sent[0]]
        wait_until(lambda: bucket.waiting > 0)
        outcomes.close()
        assert len(sent) == 1
        assert mounted.send(mine[0]).status_code == 200, "the client and the request are as before"


@pytest.mark.real_time
async def test_closing_the_client_wakes_what_waits_for_a_permit(world: World) -> None:
    bucket = stkai.TokenBucket(1, 3600, burst=1, max_wait_time=None)
    limited = client(world, rate_limit=bucket)
    send = stkai.asend_all if world.is_async else stkai.send_all
    loop: Any = send(limited, requests(2))
    following = loop.__anext__ if world.is_async else loop.__next__
    assert (await world.call(following)).response is not None
    await world.until(lambda: bucket.waiting > 0)
    await world.close(limited)
    late = await world.call(following)
    assert isinstance(late.error, RuntimeError)
    assert "closed" in str(late.error)
    await world.close(loop)


def test_invalid_arguments_are_refused_at_once() -> None:
    sync, asynchronous = World("sync"), World("asyncio")
    with pytest.raises(stkai.ConfigurationError, match="asend_all"):
        stkai.send_all(client(asynchronous), [])
    with pytest.raises(stkai.ConfigurationError, match="send_all"):
        stkai.asend_all(client(sync), [])
    with pytest.raises(stkai.ConfigurationError, match="send_all needs"):
        stkai.send_all(7, [])  # type: ignore[arg-type]
    for count in (0, -1, 1.5, True, "3", None):
        with pytest.raises(stkai.InvalidArgumentError, match="max_in_flight"):
            stkai.send_all(client(sync), [], max_in_flight=count)  # type: ignore[arg-type]
    with pytest.raises(stkai.InvalidArgumentError, match="iterable"):
        stkai.send_all(client(sync), 5)  # type: ignore[arg-type]


async def test_no_requests_give_no_outcomes(world: World) -> None:
    assert await collect(world, client(world), []) == []
    assert await collect(world, client(world), lazily([], world)) == []


async def test_a_journal_skips_returned_outcomes_and_reports_what_was_in_flight(
    world: World, tmp_path: Path
) -> None:
    path = tmp_path / "calls.journal"
    sent: list[int] = []

    def answer(number: int) -> int:
        sent.append(number)
        return number

    taken = await first(world, 4, client(world, answer), requests(10), max_in_flight=2, journal=path)
    seen, executed = [outcome.index for outcome in taken], set(sent)
    rest = await collect(world, client(world, answer), requests(10), max_in_flight=2, journal=path)
    assert sorted([*seen, *(outcome.index for outcome in rest)]) == list(range(10))
    unknown = {outcome.index for outcome in rest if isinstance(outcome.error, stkai.OutcomeUnknownError)}
    assert unknown == executed - set(seen)
    advice = "to send it, pass it alone to another loop, without this journal"
    assert all(str(outcome.error).endswith(advice) for outcome in rest if outcome.index in unknown)
    assert sorted(sent) == sorted(set(sent))
    assert await collect(world, client(world, answer), requests(10), journal=path) == []
    header = json.loads(path.read_text().splitlines()[0])
    assert header["stkai"] == "send_all"


def test_requests_that_a_journal_skips_are_counted_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, world = tmp_path / "calls.journal", World("sync")
    assert len(list(stkai.send_all(client(world), requests(3), journal=path))) == 3
    assert not caplog.records
    assert [outcome.index for outcome in stkai.send_all(client(world), requests(4), journal=path)] == [3]
    (warning,) = caplog.records
    assert (
        f"not sent again: 3 requests whose outcomes an earlier run with the journal {path}"
        in warning.getMessage()
    )


def test_the_path_of_a_journal_may_begin_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    list(stkai.send_all(client(World("sync")), requests(1), journal="~/calls.journal"))
    assert (tmp_path / "calls.journal").is_file()


def test_a_request_whose_record_was_torn_was_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "calls.journal"
    world = World("sync")
    list(stkai.send_all(client(world), requests(1), journal=path))
    with path.open("a") as journal:
        journal.write("s 1")
    outcomes = list(stkai.send_all(client(world), requests(4), journal=path))
    assert {outcome.index: outcome.error for outcome in outcomes} == {1: None, 2: None, 3: None}


def test_a_journal_that_is_in_use_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calls.journal"
    world = World("sync")
    first = stkai.send_all(client(world), requests(3), journal=path)
    next(first)
    with pytest.raises(stkai.ConfigurationError, match="another loop in this one"):
        next(stkai.send_all(client(world), requests(3), journal=path))
    first.close()
    path.write_text('{"stkai": "batch", "version": 1, "job": "00000000-0000-4000-8000-000000000000"}\n')
    with pytest.raises(stkai.ConfigurationError, match="stkai batch"):
        next(stkai.send_all(client(world), requests(3), journal=path))
    path.write_text('{"stkai": "send_all", "version": 2, "job": "00000000-0000-4000-8000-000000000000"}\n')
    with pytest.raises(stkai.ConfigurationError, match="another version"):
        next(stkai.send_all(client(world), requests(3), journal=path))


def fork(run: Callable[[], object]) -> int:
    """Run this in a forked process; returns its id. It ends with status 0, or by a signal if it hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns if threads run.
        child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            run()
        finally:
            os._exit(0)
    return child


def test_a_process_that_is_forked_while_a_record_is_written_can_leave_the_loop_and_writes_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "calls.journal"
    journal = Journal(path)
    journal.begin("send_all", {})
    before = path.read_bytes()

    def leave() -> None:
        journal.write("d", 0)
        journal.close()

    with journal._appending:
        assert os.waitpid(fork(leave), 0)[1] == 0
    assert path.read_bytes() == before
    journal.write("d", 0)
    assert path.read_bytes() == before + b"d 0\n"
    journal.close()


def test_a_process_that_is_forked_in_the_loop_cannot_continue_it() -> None:
    loop = stkai.send_all(client(World("sync")), requests(3))
    next(loop)

    def continue_() -> None:
        with pytest.raises(stkai.ConfigurationError, match="leave it there"):
            list(loop)
        os._exit(7)

    assert os.waitstatus_to_exitcode(os.waitpid(fork(continue_), 0)[1]) == 7
    assert len(list(loop)) == 2


def test_a_process_that_is_forked_in_the_loop_neither_keeps_nor_gives_up_the_journal(tmp_path: Path) -> None:
    path, (reading, writing) = tmp_path / "calls.journal", os.pipe()
    loop = stkai.send_all(client(World("sync")), requests(3), journal=path)
    next(loop)

    assert os.waitpid(fork(loop.close), 0)[1] == 0
    with pytest.raises(stkai.ConfigurationError, match="another process"):
        next(stkai.send_all(client(World("sync")), requests(3), journal=path))
    child = fork(lambda: os.read(reading, 1))
    try:
        loop.close()
        assert len(list(stkai.send_all(client(World("sync")), requests(3), journal=path))) == 2
    finally:
        os.write(writing, b"x")
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("name", ["pipe", "null"])
def test_a_journal_that_is_not_a_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(f"/dev/{name}")
    with pytest.raises(stkai.ConfigurationError, match=f"{name} is not a file"):
        next(stkai.send_all(client(World("sync")), requests(1), journal=path))


def test_an_abandoned_loop_leaves_no_task_behind() -> None:
    held = Held()

    async def leave() -> None:
        async with httpx.AsyncClient(transport=held) as plain:
            async for _ in stkai.asend_all(plain, requests(4)):
                break

    asyncio.run(leave())
    assert held.running == held.cancelled
    held = Held()

    async def leave_in_trio() -> None:
        async with (
            httpx.AsyncClient(transport=held) as plain,
            aclosing(stkai.asend_all(plain, requests(4))) as outcomes,
        ):
            async for _ in outcomes:
                break

    trio.run(leave_in_trio)
    assert held.running == held.cancelled


async def test_requests_whose_connection_failed_are_not_unknown_after_an_orderly_end(
    world: World, tmp_path: Path
) -> None:
    path = tmp_path / "calls.journal"
    down = client(world, lambda _: httpx.ConnectError("refused"), retry=None)
    taken = await first(world, 1, down, requests(6), max_in_flight=4, journal=path)
    rest = await collect(world, client(world), requests(6), journal=path)
    assert {outcome.index for outcome in rest} == set(range(6)) - {taken[0].index}
    assert [outcome.error for outcome in rest] == [None] * 5


@pytest.mark.real_time
async def test_requests_that_waited_for_a_permit_are_not_unknown_after_an_orderly_end(
    world: World, tmp_path: Path
) -> None:
    path, sent = tmp_path / "calls.journal", list[int]()

    def answer(number: int) -> int:
        sent.append(number)
        return number

    limited = client(world, answer, rate_limit=stkai.TokenBucket(2, 3600))
    taken = await first(world, 2, limited, requests(6), max_in_flight=5, journal=path)
    assert sorted(outcome.index for outcome in taken) == sorted(sent)
    rest = await collect(world, client(world, answer), requests(6), journal=path)
    assert {outcome.index for outcome in [*taken, *rest]} == set(range(6))
    assert [outcome.error for outcome in rest] == [None] * 4
    assert sorted(sent) == list(range(6))


@pytest.mark.real_time
async def test_requests_that_were_refused_are_not_unknown_after_an_orderly_end(
    world: World, tmp_path: Path
) -> None:
    def answer(number: int) -> httpx.Response:
        return httpx.Response(503, headers={"Retry-After": "2"}) if number else httpx.Response(200)

    path = tmp_path / "calls.journal"
    taken = await first(world, 1, client(world, answer), requests(4), max_in_flight=4, journal=path)
    assert [outcome.index for outcome in taken] == [0]
    rest = await collect(world, client(world), requests(4), journal=path)
    assert sorted(outcome.index for outcome in rest) == [1, 2, 3]
    assert [outcome.error for outcome in rest] == [None] * 3


@pytest.mark.real_time
async def test_nothing_is_sent_when_the_journal_cannot_be_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, kind: str, number: int) -> None:
        raise WriteError("calls.journal", OSError(errno.ENOSPC, "full"))

    monkeypatch.setattr(Journal, "write", full)
    sent: list[int] = []
    with pytest.raises(stkai.StkaiError, match="cannot be written"):
        await collect(world, client(world, sent.append), requests(9), journal=tmp_path / "calls.journal")
    assert sent == []


async def test_a_journal_changes_nothing_about_the_calls_themselves(world: World, tmp_path: Path) -> None:
    failures = {1: 2, 3: 1}

    def answer(number: int) -> Any:
        if failures.get(number):
            failures[number] -= 1
            return httpx.ConnectError("refused")
        return ValueError("odd") if number == 4 else number

    clock = FakeClock()
    sending = client(world, answer, clock=clock)
    outcomes = await collect(world, sending, requests(6), journal=tmp_path / "calls.journal")
    assert {outcome.index: type(outcome.error).__name__ for outcome in outcomes if outcome.error} == {
        4: "ValueError"
    }
    attempts = {
        outcome.index: outcome.response.extensions["stkai"].attempts
        for outcome in outcomes
        if outcome.response
    }
    assert attempts == {0: 1, 1: 3, 2: 1, 3: 2, 5: 1}


async def test_the_error_of_a_journaled_request_is_freed_without_the_garbage_collector(
    world: World, tmp_path: Path
) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow")

    async def afail(request: httpx.Request) -> httpx.Response:
        return fail(request)

    build = stkai.build_async_client if world.is_async else stkai.build_client
    sending = build(auth=None, transport=httpx.MockTransport(afail if world.is_async else fail))
    gc.disable()
    try:
        outcomes = await collect(world, sending, requests(1), journal=tmp_path / "calls.journal")
        error = weakref.ref(outcomes.pop().error)
        assert error() is None
    finally:
        gc.enable()


async def test_a_request_that_may_have_acted_before_its_connection_failed_is_unknown(
    world: World, tmp_path: Path
) -> None:
    path = tmp_path / "calls.journal"
    attempts: Counter[int] = Counter()

    def answer(number: int) -> Any:
        attempts[number] += 1
        if number == 0:
            return 0
        return httpx.ReadError("broken") if attempts[number] == 1 else httpx.ConnectError("refused")

    policy = stkai.RetryPolicy(max_retries=1, initial_delay=0.0)
    await first(world, 1, client(world, answer, retry=policy), puts(3), max_in_flight=3, journal=path)
    rest = await collect(world, client(world), puts(3), journal=path)
    tried = {number for number, count in attempts.items() if count and number}
    assert {o.index for o in rest if isinstance(o.error, stkai.OutcomeUnknownError)} <= {0, *tried}
    assert all(attempts[outcome.index] == 0 for outcome in rest if outcome.error is None)


def puts(count: int) -> list[httpx.Request]:
    return [httpx.Request("PUT", URL.format(number)) for number in range(count)]


async def test_a_connection_error_of_a_foreign_wire_may_come_after_the_request(
    world: World, tmp_path: Path
) -> None:
    called = set[int]()

    class Foreign(httpx.AsyncBaseTransport, httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            called.add(number_of(request))
            if number_of(request) == 0:
                return httpx.Response(200)
            raise httpx.ConnectError("broken")

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return self.handle_request(request)

    path = tmp_path / "calls.journal"
    build = stkai.build_async_client if world.is_async else stkai.build_client
    foreign = build(auth=None, retry=None, transport=Foreign())
    await first(world, 1, foreign, requests(4), max_in_flight=4, journal=path)
    rest = await collect(world, client(world), requests(4), journal=path)
    assert len(rest) == 3
    unknown = {o.index for o in rest if isinstance(o.error, stkai.OutcomeUnknownError)}
    assert unknown == called & {outcome.index for outcome in rest}


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_loop_that_ends_right_after_a_break_leaves_no_coroutine_behind_and_no_error(
    is_kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio.run() cancels tasks that have not begun, and closes all async generators at once."""
    kept: list[Any] = []

    async def answer(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        return httpx.Response(200)

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            outcomes = stkai.asend_all(client, requests(50), max_in_flight=4)
            if is_kept:
                kept.append(outcomes)
            async for outcome in outcomes:
                if outcome.index == 5:
                    break

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert not [str(warning.message) for warning in caught]
    assert not caplog.records
