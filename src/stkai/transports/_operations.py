"""The operations that a flow asks its driver to carry out: each is one step, and the driver sends back the result.

A flow is a generator. It does no I/O and never waits: it yields operations, and the sync or the async driver carries
them out. The `yield` returns what the operation returns, and raises what it raises.
"""

import math
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any, Final, TypeVar

import httpx

from .._checks import REAL
from .._errors import ConfigurationError, InvalidArgumentError
from .._families import alike
from .._log import logger


class Operation:
    """Base class of what a flow may yield.

    Attributes:
        cleans_up: whether the driver carries it out even after the call is over.
    """

    __slots__ = ()
    cleans_up: bool = False


class Send(Operation):
    """Send the request to a transport that is not a layer; returns its response with the body unread."""

    # No slots: every request creates one, and CPython 3.13 creates objects faster without them.
    def __init__(self, wire: Any, request: httpx.Request, attempt: Any) -> None:
        self.wire = wire
        self.request = request
        self.attempt = attempt


class Sleep(Operation):
    """Wait for this many seconds, or until `sleeper` is woken.

    Args:
        seconds: no wait if negative, as the time until an instant in the past is.
        sleeper: an object whose `wake` the driver sets to a function that ends the wait; if its `is_woken` is set
            already, there is no wait. In a thread, only sleeps of the system's clock can be woken.
    """

    __slots__ = ("seconds", "sleeper")

    def __init__(self, seconds: float, sleeper: Any = None) -> None:
        # The clocks of threads, asyncio and trio differ in what they do with other values.
        if not isinstance(seconds, REAL) or math.isnan(seconds):
            raise ConfigurationError(f"Sleep takes a number of seconds, not {seconds!r}")
        self.seconds = max(0.0, seconds)
        self.sleeper = sleeper


class Read(Operation):
    """Read the whole body of a response and decode it."""

    __slots__ = ("response",)

    def __init__(self, response: httpx.Response) -> None:
        self.response = response


class Load(Operation):
    """Load at most `limit` bytes of the body, still encoded, and return the connection; the rest is dropped.

    The response can be read or streamed as before.

    Args:
        brief: drop what has not arrived after a second, or after a quarter of the time left until the deadline.
    """

    __slots__ = ("brief", "limit", "response")

    def __init__(self, response: httpx.Response, limit: float, *, brief: bool = False) -> None:
        self.response, self.limit, self.brief = response, limit, brief


class Close(Operation):
    """Close a response. The driver does this even after a cancellation, and ignores errors."""

    __slots__ = ("response",)
    cleans_up = True

    def __init__(self, response: httpx.Response) -> None:
        self.response = response


class Drain(Close):
    """Close an unwanted response, after reading a short body so that the connection can be reused.

    Args:
        seconds: how long to wait for the body, at least a tenth of a second and at most one.
    """

    __slots__ = ("seconds",)

    def __init__(self, response: httpx.Response, seconds: float = 0.0) -> None:
        super().__init__(response)
        self.seconds = min(max(seconds, 0.1), 1.0)


class Until(Operation):
    """Set a deadline for all further operations, in seconds of the clock. It can only become earlier."""

    __slots__ = ("deadline",)

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline


class Run(Operation):
    """Run your own code: the sync driver calls `sync`, the async driver awaits `asynchronous`.

    Args:
        sync: called with the seconds left until the deadline; infinite without one.
        asynchronous: the same for async stacks; cancelled at the deadline.
        cleans_up: whether the operation releases something, so that it must run even after a cancellation.
    """

    __slots__ = ("asynchronous", "cleans_up", "sync")

    def __init__(
        self,
        sync: Callable[[float], Any],
        asynchronous: Callable[[float], Awaitable[Any]],
        *,
        cleans_up: bool = False,
    ) -> None:
        self.sync, self.asynchronous, self.cleans_up = sync, asynchronous, cleans_up


T = TypeVar("T")

Steps = Generator[Operation, Any, T]
"""A part of a flow that returns a value of its own."""

Flow = Generator[Operation, Any, httpx.Response]
"""A request's way through a layer and all layers inside it."""

_MAX_NOTICES: Final = 100
"""How often at most a driver notifies a flow that its call is over, since each layer may swallow the notice once."""


def is_clean_up(operation: object) -> bool:
    """Whether a driver carries it out even after the call is over."""
    return isinstance(operation, Operation) and operation.cleans_up


class WrongOperationError(ConfigurationError, TypeError):
    """A flow yielded something that is not an operation."""

    def __init__(self, operation: object) -> None:
        super().__init__(
            f"a flow yields operations of stkai.transports, such as Sleep(1.0), not {operation!r}"
        )
        self.operation = operation


def clean_ups(flow: Flow, error: BaseException) -> Iterator[Operation]:
    """Notify a flow, with `error`, that its call is over; yields the clean-up that it requests from its driver.

    A layer must not answer with anything else; if one returns a response, that must be closed as well.
    """
    notified = 0
    try:
        operation = flow.throw(error)
        while notified < _MAX_NOTICES:
            if is_clean_up(operation):
                yield operation
                operation = flow.send(None)
            else:
                notified = _swallowed(error, type(operation).__name__, notified)
                operation = flow.throw(error)
        flow.close()
    except StopIteration as stop:
        _swallowed(error, "an answer", notified)
        if isinstance(stop.value, alike(httpx.Response)):
            yield Close(stop.value)
    except BaseException as other:
        if other is not error:
            logger.debug("the clean-up of a call failed", exc_info=True)
    finally:
        del error  # Its traceback refers to this frame and the driver: a cycle for the garbage collector.


def _swallowed(error: BaseException, answer: str, notified: int) -> int:
    """Report, once, that a layer has swallowed the notice; returns how often the flow has been notified."""
    if not notified:
        bug = f"a layer answered {type(error).__name__} with {answer}; it must clean up and re-raise it"
        error.add_note(f"stkai: {bug}")
        logger.error("%s", bug)
    return notified + 1


def play(flow: Flow, *outcomes: Any) -> tuple[list[Operation], httpx.Response]:
    """Run a flow by hand, to test it without a transport: nothing is sent, and nothing waits.

        operations, response = play(layer.flow(request, attempt), httpx.ConnectError("refused"), None, answer)

    Args:
        flow: what the `flow` method of a layer, or a flow function, returned.
        outcomes: the outcome of each of its operations, one by one: a response for a `Send`, the value of a
            `Run`, None for the others. An exception is raised in the flow. Missing ones at the end count as None,
            except for a `Send` or a `Run`.

    Returns:
        The operations that the flow asked for, and the response that it returned. What the flow raises is raised.

    Raises:
        ConfigurationError: the flow is not a generator.
        InvalidArgumentError: (an AssertionError) there are too few outcomes, or too many.
    """
    if not isinstance(flow, Generator):
        raise ConfigurationError(
            f"play() takes a running flow, such as layer.flow(request, attempt), not {flow!r}"
        )
    operations: list[Operation] = []
    try:
        operation = flow.send(None)
        while True:
            operations.append(operation)
            number = len(operations)
            if number > len(outcomes) and isinstance(operation, Send | Run):
                flow.close()
                raise InvalidArgumentError(
                    f"operation number {number} is a {type(operation).__name__}, and there are {len(outcomes)} outcomes"
                )
            outcome = outcomes[number - 1] if number <= len(outcomes) else None
            operation = flow.throw(outcome) if isinstance(outcome, BaseException) else flow.send(outcome)
    except StopIteration as end:
        if len(operations) < len(outcomes):
            raise InvalidArgumentError(
                f"the flow ended after {len(operations)} operations, and there are {len(outcomes)} outcomes"
            ) from None
        return operations, end.value
