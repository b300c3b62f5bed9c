"""The retry flow alone: the outcome of each attempt goes in, operations come out."""

import gzip
from typing import Any

import httpx
import pytest

from stkai import RetryPolicy
from stkai.testing import FakeClock
from stkai.transports import Attempt, Call, Context, RetryTransport

from ...support.flows import Outcome, Played, play
from ...support.wire import Wire

URL = "https://api.example.com/v1"


def run(
    *answers: Outcome, policy: RetryPolicy | None = None, buffered: bool = False, **options: Any
) -> Played:
    clock = FakeClock()
    layer = RetryTransport(Wire(), policy, context=Context(clock=clock, random=lambda: 0.0, listener=print))
    request = httpx.Request("POST", URL, content=b"body")
    attempt = Attempt(Call.start(request, 0.0, buffered=buffered))
    return play(layer.flow(request, attempt), *answers, clock=clock, **options)


def test_a_failure_is_drained_before_the_wait_for_the_next_attempt() -> None:
    played = run(httpx.Response(503), httpx.ConnectError("refused"), httpx.Response(200))
    assert played.asked == ["send", "drain", "sleep 0.5", "send", "sleep 1", "send"]


def test_a_buffered_answer_is_read_in_its_attempt_and_a_failure_is_not() -> None:
    played = run(httpx.Response(503), httpx.Response(200), buffered=True)
    assert played.asked == ["send", "drain", "sleep 0.5", "send", "read"]


def test_a_failure_whose_body_cannot_be_decoded_is_retried_like_any_other() -> None:
    garbled = httpx.Response(503, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))
    for buffered in (False, True):
        played = run(garbled, httpx.Response(200), buffered=buffered)
        assert played.response is not None
        assert played.response.status_code == 200


def test_an_answer_whose_body_cannot_be_decoded_is_closed_and_final() -> None:
    garbled = httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))
    played = run(garbled, buffered=True)
    assert played.asked == ["send", "read", "close"]
    assert isinstance(played.error, httpx.DecodingError)


def test_a_compressed_answer_is_decoded_when_read() -> None:
    body = httpx.ByteStream(gzip.compress(b"whole"))
    played = run(httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=body), buffered=True)
    assert played.response is not None
    assert played.response.content == b"whole"


def test_the_policy_sets_the_deadline_before_anything_else() -> None:
    played = run(httpx.Response(200), policy=RetryPolicy(deadline=5.0))
    assert played.asked == ["until 5", "send"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit], ids=repr)
@pytest.mark.parametrize("where", ["send", "drain", "sleep 0.5"])
def test_an_interrupt_ends_the_loop_at_any_operation(where: str, interrupt: type[BaseException]) -> None:
    error = interrupt()

    def at(asked: str) -> None:
        if asked == where and not (asked == "send" and len(seen) == 0):
            raise error
        seen.append(asked)

    seen: list[str] = []
    played = run(httpx.Response(503), httpx.Response(200), at=at)
    assert played.error is error
    assert played.asked.count("send") == (2 if where == "send" else 1)


def test_an_interrupt_while_an_answer_is_read_closes_it_and_sends_nothing_again() -> None:
    error = KeyboardInterrupt()

    def at(asked: str) -> None:
        if asked == "read":
            raise error

    played = run(httpx.Response(200), buffered=True, at=at)
    assert (played.asked, played.error) == (["send", "read", "close"], error)
