"""Calls the store for a member of a share: the I/O, its failures, and events."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary, proxy, ref

from ..._abandonable import AbandonableWork, GivenUpError, do_within
from ..._clock import SystemClock, unique_key
from ..._errors import ConfigurationError, describe
from ..._log import Listeners, logger
from ..._process import begin_in_each_process, is_interrupt, raise_interrupt
from ...events import CallInfo, Event, QuotaDisagreement, StoreLost, StoreRestored
from ...stores import Ask, FileStore, Lease, Quota, RedisStore, store_from
from ...stores._background_calls import LAST_REPORT, STUCK_AFTER, TimeLimit, background, close_at_exit
from ...stores._file import InUseError
from ...stores._protocol import check_lease, check_share
from .._operations import Run
from .queue import Queue
from .sources import Limits, Source
from .sources.holding import StoreCall
from .sources.leased import Leased, quota_of

if TYPE_CHECKING:
    from .pace.group import GroupPace

# Seconds for a call to a custom store; less than the time after which another call may begin.
_STORE_TIMEOUT: Final = 0.8
# Seconds; a request with less time to its deadline calls the store in a thread, since it may have to abandon it.
_MIN_TIME_LEFT: Final = 1.0
# The time limits of custom stores, by the store's id: a store that hangs must not delay each of its shares again.
_time_limits: "Final[WeakValueDictionary[int, TimeLimit]]" = WeakValueDictionary()

_NO_CALL: Final = CallInfo(id=0, method="", host="")

_clock = SystemClock()


class StoreClient:
    """Calls a store: in the request's thread, or, on an event loop or without a request, in the background."""

    def __init__(
        self,
        store: Any,
        share: str,
        limits: Limits,
        alone: Callable[[], Sequence[Source]],
        pace: "GroupPace | None",
    ) -> None:
        quota = quota_of(limits, promises=pace is None)
        self.member = Leased(check_share(share), quota, _identity, alone, pace)
        self.store = store_from(store)
        self._is_instant = getattr(self.store, "blocks", True) is False
        self._limit: TimeLimit | None = None
        if not self._is_instant and type(self.store) not in {FileStore, RedisStore}:
            self._limit = _time_limits.setdefault(id(self.store), TimeLimit(_STORE_TIMEOUT, "the store"))
        self.loss = ""  # Why the store was lost, until listeners are notified: never while the lock is held.
        # By id, not a WeakSet: threads may add to it while another one iterates over it.
        self._layers: WeakValueDictionary[int, Any] = WeakValueDictionary()
        self._last_call = _NO_CALL
        self._disagreed: Quota | None = None
        self._noted, self._ahead = _clock.monotonic(), 0.0
        self.member.client = self
        begin_in_each_process(self, StoreClient._begin)

    def _begin(self) -> None:
        self._due = float("inf")

    # Calls

    def operation(self, call: StoreCall, now: float) -> Run:
        """The operation that makes a call that a request has reserved."""
        self._note_time(now)

        async def arun(_left: float) -> None:
            if self._is_instant:
                self._make(call)
                return
            # The member keeps what the thread receives, so a cancelled request just stops waiting.
            pending = AbandonableWork(partial(self._make, call))
            while not pending.is_done:
                if not background.later(0.0, pending.run):  # `run` works only once.
                    pending.run()  # No thread can be started.
                await pending.await_(STUCK_AFTER)
            pending.result()

        return Run(lambda left: self._make_within(left, call), arun)

    def after_step(self, now: float) -> None:
        """Called without holding the lock, after each step of the queue; does what is due if the store never blocks."""
        self._note_time(now)
        if self.loss:
            self._announce_loss()
        if self._is_instant and now >= self._due:
            self.work()

    def work(self) -> None:
        """Make a background call: probe a lost store, or report."""
        self._due = float("inf")
        with Queue.lock:
            call = self.member.background_call(self._now())
        if call is not None:
            self._make(call)

    def close(self, seconds: float = LAST_REPORT) -> None:
        """Report once more, within `seconds`, and leave the group; the next request joins it again."""
        member = self.member
        with Queue.lock:
            if not member.has_joined or member.outage.is_on:
                return
            call = member.reserve_call(None, self._now(), is_last=True)
        self._make_within(seconds, call)

    def retire(self) -> None:
        """Leave the group, in another thread: the limiter was garbage-collected, perhaps while a lock is held."""
        if not self._is_instant and self.member.has_joined:
            background.later(0.0, self.close)
        # Without this cycle, the client and its store's connections are freed after the last call, and not only by the
        # garbage collector.
        self.member.client = proxy(self)

    def _note_time(self, now: float) -> None:
        """Record the time of the caller's clock, which may differ from the system's."""
        self._noted, self._ahead = now, now - _clock.monotonic()

    def _now(self) -> float:
        return self._noted if self._is_instant else _clock.monotonic() + self._ahead

    def schedule(self, seconds: float) -> None:
        """Schedule a background call after `seconds`."""
        if self._is_instant:
            # Only probes of a lost store wait for their time.
            self._due = self._noted + (seconds if self.member.outage.is_on else 0.0)
            return
        now = _clock.monotonic()
        due = now + seconds
        if due >= self._due > now - STUCK_AFTER:
            return
        self._due = due
        background.later(seconds, partial(_work_if_due, ref(self)))

    def _make_within(self, seconds: float, call: StoreCall) -> None:
        if self._is_instant or seconds >= _MIN_TIME_LEFT:
            self._make(call)
            return
        with suppress(GivenUpError):
            do_within(seconds, partial(self._make, call))

    def _make(self, call: StoreCall) -> None:
        close_at_exit(self)
        if call.turn is not None and call.turn.call is not None:
            self._last_call = call.turn.call
        with Queue.lock:
            ask = self.member.begin_call(call, self._now())
        if ask is not None:
            self._send(call, ask)

    def _send(self, call: StoreCall, ask: Ask) -> None:
        member = self.member
        try:
            answer = check_lease(self._call(self.store.lease, ask), ask.want)
        except BaseException as error:
            ends_call, reason = is_interrupt(error), describe(error)
            with Queue.lock:
                if member.group.lease is None and not member.outage.is_on:
                    ends_call = ends_call or isinstance(error, ConfigurationError)
                if isinstance(error, InUseError):
                    member.outage.in_use = member.outage.failures + 1
                if ends_call:
                    member.drop_call(call)
                else:
                    member.fail_call(call, self._now(), reason)
            if ends_call:
                raise_interrupt(error)
                raise
            logger.debug("the store of the share %r failed", member.share, exc_info=error)
            self._announce_loss()
            return
        with Queue.lock:
            restored = member.end_call(call, answer, self._now())
        member.order.wake()
        if restored:
            self._emit(StoreRestored, store=repr(self.store))
        mine, theirs = ask.quota, answer.quota
        if theirs not in (mine, self._disagreed):
            differences = mine.differences(theirs)
            self._emit(QuotaDisagreement, mine=mine.rate, theirs=theirs.rate, differences=differences)
        self._disagreed = None if theirs == mine else theirs  # Each disagreement is reported once.
        self._amend_rate(answer)

    def _call(self, method: Callable[..., Any], *words: Any) -> Any:
        return method(*words) if self._limit is None else self._limit.run(partial(method, *words))

    def _amend_rate(self, lease: Lease) -> None:
        pace: GroupPace | None = self.member.pace
        if pace is None:
            return
        with Queue.lock:
            new = pace.steer(lease, len(self.member.turns), self._now())
        if new is None:
            return
        done = False
        try:
            done = self._call(self.store.amend, lease.epoch, new)
        except Exception as error:  # Any error, as for a lease; the next lease detects an outage.
            raise_interrupt(error)
            logger.debug("cannot write the adaptive state", exc_info=True)
        finally:
            with Queue.lock:
                pace.steered(new, done=done)

    # Events

    def subscribe(self, layer: Any) -> None:
        """Also notify the listener in this layer's `context`; each listener is notified once."""
        self._layers[id(layer)] = layer

    def _announce_loss(self) -> None:
        with Queue.lock:
            reason, self.loss = self.loss, ""
            was_reached = self.member.group.lease is not None
        if reason:
            self._emit(StoreLost, store=repr(self.store), reason=reason, was_reached=was_reached)

    def _emit(self, kind: Callable[..., Event], **facts: Any) -> None:
        listeners: dict[int, Any] = {}
        for layer in filter(None, [known() for known in self._layers.valuerefs()]):
            listener = layer.context.listener
            each = listener.each if isinstance(listener, Listeners) else (listener,)
            listeners.update((id(one), one) for one in each)
        event = kind(call=self._last_call, share=self.member.share, **facts)
        Listeners(tuple(listeners.values()))(event)


def _work_if_due(client: "ref[StoreClient]") -> None:
    """Do the work that is due, unless the limiter was dropped, whose client is then retired."""
    found = client()
    if found is not None and _clock.monotonic() >= found._due:  # noqa: SLF001 - its own
        found.work()


def _identity() -> tuple[str, float, float]:
    """A new member's unique name, and the time of its start: in seconds since 1970, and as an instant."""
    return unique_key(), _clock.utcnow().timestamp(), _clock.monotonic()
