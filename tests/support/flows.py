"""Carries out flows by hand: a list of answers in, a list of operations out. No transport, no driver, no waiting."""

import math
from collections.abc import Callable
from typing import Any

import httpx

from stkai.testing import FakeClock
from stkai.transports import Close, Drain, Flow, Load, Operation, Read, Run, Send, Sleep, Until

Outcome = httpx.Response | BaseException


class Played:
    """What a flow asked for, and how it ended.

    Attributes:
        asked: its operations in words: "send", "sleep 0.5", "drain", ...
        sent: the requests.
        response: what it returned, or None.
        error: what it raised, or None.
        attempt: the one it was given, if the test keeps it here.
    """

    attempt: Any = None

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.sent: list[httpx.Request] = []
        self.response: httpx.Response | None = None
        self.error: BaseException | None = None


def play(
    flow: Flow,
    *answers: Outcome,
    clock: FakeClock | None = None,
    at: Callable[[str], object] = lambda _: None,
) -> Played:
    """Run a flow to its end.

    Args:
        flow: from the method `flow` of a layer.
        answers: answers to its `Send` operations, one by one: a response, or an error to throw in.
        clock: moved by its `Sleep` operations.
        at: called with each operation in words, before it is answered; what it raises is thrown into the flow.
    """
    played, script = Played(), iter(answers)
    step: Callable[[], Operation] = lambda: flow.send(None)  # noqa: E731
    try:
        while True:
            operation = step()
            played.asked.append(in_words(operation))
            try:
                at(played.asked[-1])
                value = _answer(operation, script, played, clock)
            except BaseException as error:
                step = _thrown(flow, error)
            else:
                step = _sent(flow, value)
    except StopIteration as stop:
        played.response = stop.value
    except BaseException as error:
        played.error = error
    return played


def _sent(flow: Flow, value: Any) -> Callable[[], Operation]:
    return lambda: flow.send(value)


def _thrown(flow: Flow, error: BaseException) -> Callable[[], Operation]:
    return lambda: flow.throw(error)


def _answer(operation: Operation, script: Any, played: Played, clock: FakeClock | None) -> Any:
    match operation:
        case Send():
            played.sent.append(operation.request)
            answer = next(script)
            if isinstance(answer, BaseException):
                raise answer
            return answer
        case Sleep() if clock is not None:
            clock.advance(operation.seconds)
        case Run():
            return operation.sync(math.inf)
        case Read():
            operation.response.read()
    return None


def in_words(operation: Operation) -> str:
    """An operation, as written in tests."""
    match operation:
        case Sleep():
            return f"sleep {operation.seconds:g}"
        case Until():
            return f"until {operation.deadline:g}"
        case Drain() | Close() | Send() | Read() | Load() | Run():
            return type(operation).__name__.lower()
    return repr(operation)
