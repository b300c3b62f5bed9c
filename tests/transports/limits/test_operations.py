"""The flow of a limiter layer alone: a limiter's answers go in, operations come out."""

from collections.abc import Callable, Collection
from typing import Any, cast

import httpx
import pytest

from stkai import DeadlineExceededError, RequestOptions, TokenAcquisitionTimeoutError
from stkai.testing import FakeClock
from stkai.transports import Answer, Attempt, Call, Context, LimiterTransport, RateChange, Run, Turn
from stkai.transports._call import SignatureExpired

from ...support.flows import Outcome, Played, play
from ...support.wire import Wire

URL = "https://api.example.com/v1"


class Scripted:
    """A limiter that answers from a script, and records its calls."""

    methods: Collection[str] = frozenset({"POST"})
    max_wait_time: float | None = None

    def __init__(self, *waits: Any) -> None:
        self.waits = list(waits)
        self.calls: list[str] = []
        self.on_learn: Callable[[Turn, Answer], RateChange | None] = lambda turn, answer: None

    def ask(self, turn: Turn, now: float) -> Any:
        self.calls.append(f"ask at {now:g}")
        return self.waits.pop(0) if self.waits else 0.0

    def leave(self, turn: Turn, now: float) -> None:
        self.calls.append(f"leave at {now:g}")

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        came = answer.response.status_code if answer.response else type(answer.error).__name__
        self.calls.append(f"learn {came}")
        return self.on_learn(turn, answer)

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        self.calls.append(f"settle {cost:g}")


def run(
    limiter: Scripted, *answers: Outcome, is_signed: Any = None, at: Any = None, **options: Any
) -> Played:
    clock = FakeClock()
    layer = LimiterTransport(Wire(), limiter, context=Context(clock=clock, listener=print))
    request = httpx.Request("POST", URL, extensions={"stkai": RequestOptions(**options)})
    attempt = Attempt(Call.start(request, 0.0))
    attempt.is_signed = is_signed
    played = play(layer.flow(request, attempt), *answers, clock=clock, at=at or (lambda _: None))
    assert attempt.record.queued == pytest.approx(clock.monotonic())
    played.attempt = attempt
    return played


def test_an_available_permit_needs_no_operation() -> None:
    limiter = Scripted()
    played = run(limiter, httpx.Response(200))
    assert played.asked == ["send"]
    assert limiter.calls == ["ask at 0", "learn 200"]


def test_the_limiter_is_asked_again_after_each_wait() -> None:
    limiter = Scripted(2.0, 0.5)
    played = run(limiter, httpx.Response(200))
    assert played.asked == ["sleep 2", "sleep 0.5", "send"]
    assert limiter.calls == ["ask at 0", "ask at 2", "ask at 2.5", "learn 200"]


def test_an_operation_of_the_limiter_is_carried_out_before_it_is_asked_again() -> None:
    leased: list[float] = []

    async def lease(_: float) -> None:
        raise AssertionError

    limiter = Scripted(Run(leased.append, lease), 1.0)
    played = run(limiter, httpx.Response(200))
    assert played.asked == ["run", "sleep 1", "send"]
    assert len(leased) == 1


def test_an_endless_wait_is_slept_in_pieces_of_an_hour() -> None:
    played = run(Scripted(1e12, float("inf")), httpx.Response(200))
    assert played.asked == ["sleep 3600", "sleep 3600", "send"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_wait_time": 3.0}, TokenAcquisitionTimeoutError),
        ({"deadline": 3.0}, DeadlineExceededError),
        ({"max_wait_time": 3.0, "deadline": 4.0}, TokenAcquisitionTimeoutError),
        ({"max_wait_time": 4.0, "deadline": 3.0}, DeadlineExceededError),
    ],
)
def test_a_wait_beyond_the_shorter_limit_is_refused_and_gives_up_its_place(
    options: dict[str, float], error: type[Exception]
) -> None:
    limiter = Scripted(1.0, 5.0)
    played = run(limiter, **options)
    assert played.asked == ["sleep 1"]
    assert type(played.error) is error
    assert limiter.calls == ["ask at 0", "ask at 1", "leave at 1"]


async def _no_lease(_: float) -> None:
    raise AssertionError


@pytest.mark.parametrize("wait", [2.0, Run(lambda _: None, _no_lease)], ids=["a sleep", "an operation"])
def test_a_deadline_that_passes_in_a_wait_does_not_blame_the_server(wait: Any) -> None:
    def at(_: str) -> None:
        raise DeadlineExceededError("no answer")

    limiter = Scripted(wait)
    played = run(limiter, at=at, deadline=3.0)
    assert str(played.error) == "no permit within the deadline of 3 s: nothing was sent"
    assert limiter.calls == ["ask at 0", "leave at 0"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("closing")], ids=repr)
def test_an_interrupted_wait_gives_up_its_place(error: BaseException) -> None:
    def at(_: str) -> None:
        raise error

    limiter = Scripted(2.0)
    played = run(limiter, at=at)
    assert played.error is error
    assert limiter.calls == ["ask at 0", "leave at 0"]


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), KeyboardInterrupt()], ids=repr)
def test_the_limiter_also_learns_from_errors_and_interrupts(error: BaseException) -> None:
    limiter = Scripted()
    played = run(limiter, error)
    assert played.error is error
    assert limiter.calls == ["ask at 0", f"learn {type(error).__name__}"]


def test_a_request_whose_token_expired_while_it_waited_gives_its_permit_back() -> None:
    limiter = Scripted(1.0)
    played = run(limiter, is_signed=lambda: False)
    assert isinstance(played.error, SignatureExpired)
    assert limiter.calls == ["ask at 0", "ask at 1", "leave at 1"]


def test_a_request_whose_token_expired_in_a_limiter_further_inside_gives_its_permit_back() -> None:
    limiter = Scripted()
    assert isinstance(run(limiter, SignatureExpired()).error, SignatureExpired)
    assert limiter.calls == ["ask at 0", "leave at 0"]


def test_a_request_that_did_not_wait_or_whose_token_is_valid_is_sent() -> None:
    assert run(Scripted(), httpx.Response(200), is_signed=lambda: False).asked == ["send"]
    assert run(Scripted(1.0), httpx.Response(200), is_signed=lambda: True).asked == ["sleep 1", "send"]
    assert run(Scripted(1.0), httpx.Response(200)).asked == ["sleep 1", "send"]


def test_a_limiter_that_handles_the_wait_marks_the_attempt() -> None:
    def keeps(turn: Turn, answer: Answer) -> None:
        turn.paced = True

    limiter = Scripted()
    limiter.on_learn = keeps
    played = run(limiter, httpx.Response(429))
    assert played.attempt.paced is True


def failing(error: type[BaseException]) -> Scripted:
    def fail(turn: Turn, answer: Answer) -> None:
        raise error

    limiter = Scripted()
    limiter.on_learn = fail
    return limiter


def test_a_response_is_closed_after_an_interrupt_while_the_limiter_learns_from_it() -> None:
    played = run(failing(KeyboardInterrupt), httpx.Response(200))
    assert played.asked == ["send", "close"]
    assert isinstance(played.error, KeyboardInterrupt)


@pytest.mark.parametrize("status", [200, 429])
def test_the_caller_gets_its_answer_if_the_limiter_fails_to_learn_from_it(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    answer = httpx.Response(status)
    played = run(failing(ZeroDivisionError), answer)
    assert played.asked == ["send"]
    assert played.response is answer
    (record,) = caplog.records
    assert "Scripted failed on an answer" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_the_caller_gets_its_answer_if_the_limiter_learns_something_that_is_no_change_of_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limiter, answer = Scripted(), httpx.Response(429)
    limiter.on_learn = lambda turn, answer: cast("Any", "slower")
    played = run(limiter, answer)
    assert (played.asked, played.response) == (["send"], answer)
    assert "Scripted failed on an answer" in caplog.text


def test_the_caller_gets_the_error_of_the_wire_if_the_limiter_fails_to_learn_from_it() -> None:
    broken = httpx.ReadError("reset")
    assert run(failing(ZeroDivisionError), broken).error is broken
