"""Tracks requests in flight: records in the journal which were sent, and knows which may be dropped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import anyio
import httpx

from .._abandonable import Latch
from .._client import AsyncHttpClient, HttpClient
from .._errors import StkaiError
from .._families import alike
from .._headers import copy_request
from ..transports import AsyncLayerTransport, LayerTransport
from ..transports._call import ATTEMPT, Attempt, Enter, ending_with
from ..transports._failures import is_unsent
from ..transports._layer_checks import is_sound
from ..transports._operations import Flow, Operation, Run, Send, Sleep, Steps
from ..transports._retry.policy import REFUSED_STATUS
from .append_file import WriteError
from .journal import Journal, LineState, Recovered

_REFUSED: Final = REFUSED_STATUS | {httpx.codes.UNAUTHORIZED}
"""Statuses that prove that the request did not run."""


class DroppedError(StkaiError):
    """The run ended before this request was sent; a resumed job sends it."""

    def __init__(self) -> None:
        super().__init__("the run ended before this had an outcome")


class RunState:
    """State that all requests of a run share; each has a number."""

    journal: Journal | None = None  # Without one, nothing can be resumed.
    commit: Run | None = None  # Ensures that the journal would survive a power failure.

    def __init__(self) -> None:
        self.ending = Latch()  # Set once nothing more may be sent.
        self.recovered = Recovered()  # What earlier runs have done.

    def wants(self, number: int) -> bool:
        """Whether the outcome of a request is still to come."""
        return self.recovered.states[number] is not LineState.DONE

    def record(self, kind: str, *values: object) -> None:
        if self.journal is not None:
            self.journal.write(kind, *values)


class Tracker:
    """Tracks one request: records in the journal, if there is one, that it is sent, or that it did not run.

    `number` is that of its line; for `send_all`, its index. `may_drop`: it has not been sent, or was refused. Once
    `may_have_acted` is set, no later refusal proves that the request did not run.
    """

    def __init__(self, run: RunState, number: int) -> None:
        self.run, self.number = run, number
        self.may_drop, self.may_have_acted = True, False
        self.is_waiting = False  # Between two attempts, or for a permit.
        self.refusal: int | None = None  # The status of the last attempt that was refused.

    def about_to_send(self) -> Operation | None:
        """Called just before an attempt is sent. May return an operation to carry out first, or raise to prevent it."""
        if self.run.ending.is_done:
            raise DroppedError
        self.run.record("s", self.number)
        self.may_drop = False
        return self.run.commit

    def not_sent(self) -> None:
        """Called after an attempt, if all attempts so far prove that the request did not run."""
        # If that fails, the request counts as sent, which is safe, and the next one is not sent.
        with suppress(WriteError):
            self.run.record("n", self.number)
        self.may_drop = True


class LineInFlight(Tracker):
    """A line that is being sent. It may also be dropped once a later run can poll for its outcome."""

    def __init__(self, run: RunState, number: int) -> None:
        super().__init__(run, number)
        self.custom_id = "null"  # As JSON, once it has been read.
        self.execution: str | None = None  # The id of its execution, once known.
        self.scope = anyio.CancelScope()

    def end_with_run(self) -> None:
        """Cancel the line's task if the run is ending, and no request of the line is on the wire."""
        if (self.may_drop or self.is_waiting) and self.run.ending.is_done:
            self.scope.cancel()

    def not_sent(self) -> None:
        super().not_sent()
        self.end_with_run()

    async def created(self, execution: str) -> None:
        """Record that the line has created an execution, which a resumed job continues to poll."""
        self.execution, journal = execution, self.run.journal
        if journal is None:  # Only this run can tell the outcome, so it polls to the end.
            return
        with suppress(WriteError):  # The same; the next line is not sent.
            journal.write("x", self.number, execution)
            if self.run.commit is not None:
                await journal.commit()
            self.may_drop = True
            self.end_with_run()


def send_tracked(
    client: HttpClient | httpx.Client, request: httpx.Request, tracker: Tracker
) -> httpx.Response:
    """Send one request; if it waits in a stack of ours, for example for a permit, the wait stops when the run ends."""
    is_ours = _begins_in(LayerTransport.handle_request, client, request)
    if not is_ours:
        tracker.about_to_send()

    def around(flow: Enter, request: httpx.Request, attempt: Attempt) -> Flow:
        tracked = partial(track, tracker, flow) if is_ours else flow
        return ending_with(tracker.run.ending, tracked, request, attempt)

    with _copy_of(request, around) as copy:
        return _answer_to(request, copy, client.send(copy))


async def asend_tracked(
    client: AsyncHttpClient | httpx.AsyncClient, request: httpx.Request, tracker: Tracker
) -> httpx.Response:
    """Send one request; to stop waiting when the run ends, cancel the task."""
    handle = AsyncLayerTransport.handle_async_request
    if tracker.run.journal is None or not _begins_in(handle, client, request):
        tracker.about_to_send()
        return await client.send(request)
    with _copy_of(request, partial(track, tracker)) as copy:
        return _answer_to(request, copy, await client.send(copy))


def _begins_in(handle: Callable[..., object], client: Any, request: httpx.Request) -> bool:
    """Whether the client passes the request to this method of our layers, which may wait before they send anything.

    A client that overrides `send` may pass on another request.
    """
    send = getattr(type(client), "send", None)
    clients_of_httpx: Any = alike(httpx.Client, httpx.AsyncClient)
    if send in {HttpClient.send, AsyncHttpClient.send}:
        return True
    if send not in {each.send for each in clients_of_httpx}:
        return False
    find = getattr(client, "_transport_for_url", None)  # Private in httpx and httpx2.
    return find is not None and getattr(type(find(request.url)), handle.__name__, None) is handle


@contextmanager
def _copy_of(
    request: httpx.Request, around: Callable[[Enter, httpx.Request, Attempt], Flow]
) -> Iterator[Any]:
    """A copy of a request that makes a stack apply `around`, but only inside the block.

    Redirects and httpx's errors keep the copy's extensions, and the caller may send those requests again.
    """
    arounds = [around]

    def enter(flow: Enter, request: httpx.Request, attempt: Attempt) -> Flow:
        return arounds[0](flow, request, attempt) if arounds else flow(request, attempt)

    try:
        yield copy_request(request, extensions={**request.extensions, ATTEMPT: enter})
    finally:
        arounds.clear()


def _answer_to(request: httpx.Request, copy: httpx.Request, response: httpx.Response) -> httpx.Response:
    """The response, with the caller's own request in place of the copy for this run."""
    with suppress(RuntimeError):  # A mock may return a response without a request.
        if response.request is copy:
            response.request = request
    return response


def track(tracker: Tracker, flow: Enter, request: httpx.Request, attempt: Attempt) -> Flow:
    """The same flow, but it notifies `tracker` of each request sent."""
    steps = flow(request, attempt)
    try:
        operation = next(steps)
        while True:
            try:
                result = yield from _carry_out(tracker, operation)
            except BaseException as error:  # noqa: BLE001 - thrown into the flow
                operation = steps.throw(error)
            else:
                operation = steps.send(result)
    except StopIteration as end:
        response: httpx.Response = end.value
        return response


def _carry_out(tracker: Tracker, operation: Operation) -> Steps[Any]:
    """Carry out a step of a flow: do not sleep once the run is ending, and notify `tracker` of each request sent."""
    if type(operation) is Sleep:  # Cheaper than isinstance.
        if tracker.run.ending.is_done:
            raise DroppedError
        tracker.is_waiting = True
        try:
            return (yield operation)
        finally:
            tracker.is_waiting = False
    if not isinstance(operation, Send):
        return (yield operation)
    first = tracker.about_to_send()
    try:
        if first is not None:
            yield first
        response: httpx.Response = yield operation
    except BaseException as error:
        is_sent = not is_unsent(error, sound_wire=is_sound(operation.wire))
        tracker.may_have_acted = tracker.may_have_acted or is_sent
        raise
    else:
        if response.status_code in _REFUSED:
            tracker.refusal = response.status_code
        else:
            tracker.may_have_acted = True
        return response
    finally:
        if not tracker.may_have_acted:
            tracker.not_sent()
