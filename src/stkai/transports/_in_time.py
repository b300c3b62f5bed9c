"""Sends to the wire, and stops waiting at the call's deadline, whatever the wire does.

A timeout bounds one read, not how many there are: a server that sends its answer byte by byte would hold a call for as
long as it likes. A task can be cancelled; a thread cannot, so that the sync wire works in one of its own, and the wait
for that is given up. Only calls with a deadline come here.
"""

import threading
from contextvars import copy_context

import httpx

from .._clock import Clock
from .._families import alike, family_of
from ._call import Call


def send_in_time(
    wire: httpx.BaseTransport, request: httpx.Request, call: Call, clock: Clock
) -> httpx.Response:
    """Send within what is left of the deadline; where the caller wants the whole body, that is there as well.

    Raises:
        DeadlineExceededError: nothing is left, or the answer is not there in time. What comes later is closed.
    """
    attempt = _Attempt()
    arguments = (attempt.run, wire, call.limit(request, clock.monotonic()), call, clock)
    threading.Thread(target=copy_context().run, args=arguments, daemon=True).start()
    try:
        # By the call's clock, which need not be that of the lock.
        while (left := call.time_left(clock.monotonic())) > 0 and not attempt.done.wait(_waitable(left)):
            pass
        if not attempt.done.is_set():
            raise call.too_late()
        return attempt.take()
    except alike(httpx.TimeoutException) as error:
        call.check_deadline(clock.monotonic(), error)
        raise
    finally:
        attempt.abandon()


def _waitable(seconds: float) -> float:
    return min(max(seconds, 1e-3), threading.TIMEOUT_MAX)


class _Attempt:
    """One use of a sync wire, in a thread of its own; `done` when that has ended."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self._lock = threading.Lock()
        self._abandoned = False
        self._response: httpx.Response | None = None
        self._error: BaseException | None = None

    def run(self, wire: httpx.BaseTransport, request: httpx.Request, call: Call, clock: Clock) -> None:
        try:
            response = wire.handle_request(request)
            if call.buffered:
                _load(response, call, clock)
            with self._lock:
                self._response = response
                abandoned = self._abandoned
            if abandoned:
                self.abandon()
        except BaseException as error:  # noqa: BLE001 - raised anew where somebody waits for it
            self._error = error
        finally:
            self.done.set()

    def take(self) -> httpx.Response:
        """What came of it, once it is done."""
        error, self._error = self._error, None
        response, self._response = self._response, None
        if response is not None:
            return response
        assert error is not None
        try:
            raise error
        finally:
            del (
                error
            )  # Its traceback leads here: a circle, in which it would stay until the garbage is collected.

    def abandon(self) -> None:
        """Close the response that nobody has taken, now or when it comes."""
        with self._lock:
            self._abandoned = True
            response, self._response = self._response, None
        if response is not None:
            response.close()


def _load(response: httpx.Response, call: Call, clock: Clock) -> None:
    """Fetch the body as it travels; layers further out may still want to see it as a stream."""
    body, family = response.stream, family_of(response)
    assert isinstance(body, family.SyncByteStream)
    chunks = []
    try:
        for chunk in body:
            call.check_deadline(clock.monotonic())
            chunks.append(chunk)
    except BaseException:
        call.broken = response
        raise
    finally:
        body.close()
    response.stream = family.ByteStream(b"".join(chunks))


async def asend_in_time(
    wire: httpx.AsyncBaseTransport, request: httpx.Request, call: Call, clock: Clock
) -> httpx.Response:
    """The same for an async wire, whose work is cancelled at the deadline."""
    import anyio

    now = clock.monotonic()
    request = call.limit(request, now)
    try:
        with anyio.move_on_after(call.time_left(now)):
            response = await wire.handle_async_request(request)
            if call.buffered:
                await _aload(response, call, clock)
            return response
    except alike(httpx.TimeoutException) as error:
        call.check_deadline(clock.monotonic(), error)
        raise
    raise call.too_late()


async def _aload(response: httpx.Response, call: Call, clock: Clock) -> None:
    import anyio

    body, family = response.stream, family_of(response)
    assert isinstance(body, family.AsyncByteStream)
    stream, chunks, late = aiter(body), [], False
    try:
        async for chunk in stream:
            if late:
                raise call.too_late()
            # The next read is cancelled, if the call's clock is that of the event loop. To leave in between would
            # strand the generators of the wire, of which trio warns.
            late = call.time_left(clock.monotonic()) <= 0
            chunks.append(chunk)
    except BaseException:
        call.broken = response
        raise
    finally:
        with anyio.CancelScope(shield=True):
            if hasattr(stream, "aclose"):
                await stream.aclose()
            await body.aclose()
    response.stream = family.ByteStream(b"".join(chunks))
