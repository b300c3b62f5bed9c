"""What goes between a member of a shared quota and its store: the I/O, its failures, and who is told of them."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol
from weakref import WeakSet, ref

from ..._clock import SystemClock, unique_key
from ..._errors import ConfigurationError
from ..._events import CallInfo, Event, QuotaDisagreement, StoreLost, StoreRestored
from ..._forks import after_fork
from ..._log import Listeners, logger
from ...stores import Ask, Law, Lease, Store
from .._operations import Run
from .limiter import Turn
from .member import Member

_FIRST_PROBE: Final = 0.25
_LONGEST_BETWEEN_PROBES: Final = 1.0
_IDLE: Final = 2.0
"""Seconds after which a thread that has nothing to do ends."""

_NOBODY: Final = CallInfo(id=0, method="", host="")


def identity() -> tuple[str, float]:
    """A name for a new member, and when it started."""
    return unique_key(), SystemClock().utcnow().timestamp()


class Pilot(Protocol):
    """Steers the rate of a group."""

    def steer(self, lease: Lease, waiting: int) -> Law | None:
        """The next adaptive state; None where the present one stands."""
        ...

    def steered(self, lease: Lease, law: Law, *, done: bool) -> None:
        """The store has taken the state, or another member was first."""
        ...


class Audience(Protocol):
    """A layer, as far as its listener goes."""

    @property
    def context(self) -> Any:
        """What the stack gives its layers."""
        ...


class Link:
    """Asks the store for a member: in the request's thread, in a worker thread of its event loop, or in one of its own.

    Args:
        member: whose questions they are.
        store: whom to ask.
        pilot: computes the group's rate, of an adaptive limiter.
    """

    def __init__(self, member: Member, store: Store, pilot: Pilot | None = None) -> None:
        self.member, self.store = member, store
        self.pilot = pilot
        self._try_lease: Callable[[Ask], Lease | None] | None = getattr(store, "try_lease", None)
        self._is_instant = getattr(store, "blocks", True) is False
        self._audience: WeakSet[Any] = WeakSet()
        self._call = _NOBODY
        self._disagreed = -1.0
        self._stumbled = False
        self._begin()
        after_fork(self, Link._begin)

    def _begin(self) -> None:
        self._errands = _Errands(self)

    def subscribe(self, layer: Audience) -> None:
        """Tell the listener of this layer's stack what happens to the store."""
        self._audience.add(layer)

    def operation(self, turn: Turn, now: float) -> Run:
        """Ask the store for permits."""

        def run(_left: float) -> None:
            self.carry(now, turn.call)

        async def arun(_left: float) -> None:
            if self._try_lease is not None and self.carry(now, turn.call, lease=self._try_lease):
                return
            from anyio import CapacityLimiter
            from anyio.to_thread import run_sync

            # What the thread brings is kept by the member: nobody has to wait for it.
            work = partial(self.carry, now, turn.call)
            await run_sync(work, abandon_on_cancel=True, limiter=CapacityLimiter(1))

        return Run(run, arun)

    def carry(
        self,
        now: float | None,
        call: CallInfo | None = None,
        *,
        lease: Callable[[Ask], Lease | None] | None = None,
        probes: bool = False,
    ) -> bool:
        """Ask the store, and tell the member what it said. Returns whether the question is settled."""
        member = self.member
        if member.is_lost and not probes:
            return True
        self._call = call = call or self._call
        ask = member.begin(now)
        if ask is None:
            return True
        try:
            answer = (lease or self.store.lease)(ask)
        except ConfigurationError as error:
            if member.known is None and not member.is_lost:
                member.end(ask, None, now)
                raise
            self._lose(ask, error, call)
        except Exception as error:  # noqa: BLE001 - whatever a store raises, the limiter goes on
            self._lose(ask, error, call)
        except BaseException:
            member.end(ask, None, now)
            raise
        else:
            restored = member.end(ask, answer, now)
            if answer is None:
                return False
            if restored and not self._stumbled:
                self._tell(StoreRestored(call=call, share=ask.share, store=repr(self.store)))
            self._stumbled = False
            self._check_quota(ask, answer, call)
            self._steer(answer)
        return True

    def run_errand(self) -> None:
        """Tell the store what no request will: a refusal, places that came back."""
        if not self.member.has_news:
            return
        if self._is_instant:
            self.carry(None)
        else:
            self._errands.wake()

    def work(self) -> None:
        """Do what no request does: ask whether the store is back, or tell it what there is to tell."""
        if self.member.is_lost:
            self.carry(None, probes=True)
        elif self.member.has_news:
            self.carry(None)

    def _steer(self, lease: Lease) -> None:
        if self.pilot is None:
            return
        law = self.pilot.steer(lease, self.member.waiting)
        if law is None:
            return
        try:
            done = self.store.amend(lease.epoch, law)
        except Exception:  # noqa: BLE001 - as of a lease; the next one finds out
            logger.debug("the adaptive state could not be written", exc_info=True)
            done = False
        self.pilot.steered(lease, law, done=done)

    def _lose(self, ask: Ask, error: Exception, call: CallInfo) -> None:
        returning = self.member.is_returning
        if self.member.lose(ask):
            # A store that stumbles while it comes back is still in the same outage.
            self._stumbled = returning
            logger.debug("the store of the share %r failed", ask.share, exc_info=error)
            if not self._is_instant:
                self._errands.wake()
        elif self._stumbled:
            self._stumbled = returning = False
        else:
            return
        if not returning:
            reason = f"{type(error).__name__}: {error}"
            self._tell(StoreLost(call=call, share=ask.share, store=repr(self.store), reason=reason))

    def _check_quota(self, ask: Ask, lease: Lease, call: CallInfo) -> None:
        theirs = lease.quota
        if theirs <= 0 or theirs == ask.rate:
            self._disagreed = -1.0
        elif theirs != self._disagreed:
            self._disagreed = theirs
            self._tell(QuotaDisagreement(call=call, share=ask.share, mine=ask.rate, theirs=theirs))

    def _tell(self, event: Event) -> None:
        """Tell each listener once, however many stacks it listens to."""
        told: list[Any] = []
        for layer in list(self._audience):
            listener = layer.context.listener
            for each in listener.each if isinstance(listener, Listeners) else (listener,):
                if not any(each is other for other in told):
                    told.append(each)
        for each in told:
            try:
                each(event)
            except Exception:  # noqa: BLE001 - user code; whatever it raises
                logger.exception("the listener failed on %s", event)


class _Errands:
    """A thread that asks the store where no request does. It ends when there is nothing to do."""

    def __init__(self, link: Link) -> None:
        self._link = ref(link)
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """See what there is to do."""
        with self._lock:
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="stkai-store", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        pause = _FIRST_PROBE
        while True:
            self._wake.clear()
            link = self._link()
            if link is not None and link.member.is_lost:
                del link
                self._wake.wait(pause)
                pause = min(2 * pause, _LONGEST_BETWEEN_PROBES)
                link = self._link()
            else:
                pause = _FIRST_PROBE
            gone = link is None
            if link is not None:
                link.work()
                if link.member.is_lost:
                    continue
            del link
            if not self._wake.wait(_IDLE):
                with self._lock:
                    if gone or not self._wake.is_set():
                        self._thread = None
                        return
