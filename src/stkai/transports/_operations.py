"""What a flow asks of its driver: each operation is one thing to do, and the driver sends back what came of it.

A flow is a generator. It does no I/O and never waits; it yields operations, and the sync or the async driver carries
them out. What an operation returns is the value of the `yield`; what it raises is raised there.
"""

import logging
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final, TypeVar

import httpx

_logger = logging.getLogger("stkai")


class Operation:
    """Base of what a flow may yield.

    Attributes:
        cleans_up: whether the driver carries it out even when the call is over.
    """

    __slots__ = ()
    cleans_up: bool = False


class Send(Operation):
    """Send the request to a transport that is no layer; returns its response, with the body unread."""

    __slots__ = ("attempt", "request", "wire")

    def __init__(self, wire: Any, request: httpx.Request, attempt: Any) -> None:
        self.wire, self.request, self.attempt = wire, request, attempt


class Sleep(Operation):
    """Wait for that many seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Read(Operation):
    """Read the whole body of a response, and decode it."""

    __slots__ = ("response",)

    def __init__(self, response: httpx.Response) -> None:
        self.response = response


class Load(Operation):
    """Fetch at most `limit` bytes of the body as it travels, and give the connection back; the rest is dropped.

    The response can be read, or streamed, as before.
    """

    __slots__ = ("limit", "response")

    def __init__(self, response: httpx.Response, limit: int) -> None:
        self.response, self.limit = response, limit


class Close(Operation):
    """Close a response. The driver does this even when the call was cancelled, and ignores what goes wrong."""

    __slots__ = ("response",)
    cleans_up = True

    def __init__(self, response: httpx.Response) -> None:
        self.response = response


class Drain(Close):
    """Close a response that nobody wants; a short body is read first, so that the connection can be used again."""

    __slots__ = ()


class Until(Operation):
    """Hold every further operation to this deadline, an instant of the clock in seconds; never later than before."""

    __slots__ = ("deadline",)

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline


class Run(Operation):
    """Do something of your own: the sync driver calls `sync`, the async driver awaits `asynchronous`.

    Args:
        sync: called with the seconds that are left until the deadline, infinite without one.
        asynchronous: the same; cancelled at the deadline.
        cleans_up: whether the operation gives something back, so that it must run even when the call was cancelled.
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
"""Part of a flow that comes to a value of its own."""

Flow = Generator[Operation, Any, httpx.Response]
"""A request's way through a layer, and all layers inside it."""

PATIENCE: Final = 100
"""How often a driver tells a flow that its call is over; each layer of it may catch that once."""


def is_clean_up(operation: object) -> bool:
    """Whether a driver carries it out even when the call is over."""
    return isinstance(operation, Operation) and operation.cleans_up


def unknown(operation: object) -> TypeError:
    """What to raise for something that is no operation."""
    return TypeError(f"a flow yields operations of stkai.transports, such as Sleep(1.0), not {operation!r}")


def swallowed(error: BaseException, answer: object, told: int) -> int:
    """Report, once, that a layer answered the end of its call with something else; returns how often it was told."""
    if not told:
        what = answer if isinstance(answer, str) else type(answer).__name__
        bug = f"a layer answered {type(error).__name__} with {what}; it must clean up and let it pass"
        error.add_note(f"stkai: {bug}")
        _logger.error("%s", bug)
    return told + 1
