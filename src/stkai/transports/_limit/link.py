"""Connects a member of a shared quota to its store: the I/O, its failures, and the events about them."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol
from weakref import WeakSet, ref

from ..._clock import SystemClock, unique_key
from ..._errors import ConfigurationError
from ..._forks import after_fork
from ..._log import Listeners, logger
from ...events import CallInfo, Event, QuotaDisagreement, StoreLost, StoreRestored
from ...stores import Ask, Law, Lease, Store
from ...stores._checked import checked
from .._operations import Run
from .limiter import Turn
from .member import Member

_FIRST_PROBE: Final = 0.25
_LONGEST_BETWEEN_PROBES: Final = 1.0
_IDLE: Final = 2.0
"""Seconds after which an idle thread ends."""

_NOBODY: Final = CallInfo(id=0, method="", host="")


def identity() -> tuple[str, float]:
    """A unique name for a new member, and its start time."""
    return unique_key(), SystemClock().utcnow().timestamp()


class Pilot(Protocol):
    """Steers the rate of a group."""

    def steer(self, lease: Lease, waiting: int, now: float) -> Law | None:
        """The next adaptive state; None to keep the present one."""
        ...

    def steered(self, lease: Lease, law: Law, *, done: bool) -> None:
        """Take note that the store has accepted the state, or that another member was first."""
        ...


class Audience(Protocol):
    """The part of a layer that leads to its listener."""

    @property
    def context(self) -> Any:
        """The context that the stack gives its layers."""
        ...


class _Here(threading.local):
    """Whether a thread is in the middle of this share's arithmetic or I/O, or in a listener called from there."""

    def __init__(self) -> None:
        self.guard: Any = threading.RLock()
        self.in_listener = False


class Link:
    """Calls the store for a member: in the request's thread, in a worker thread of its event loop, or in its own.

    Args:
        member: the member that needs permits.
        store: the store to call.
        pilot: computes the group's rate, for an adaptive limiter.
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
        self._here = _Here()
        self._begin()
        after_fork(self, Link._begin)

    def _begin(self) -> None:
        self._errands = _Errands(self)

    @property
    def guard(self) -> Any:
        """This thread's own lock, held while it is in the middle of something."""
        return self._here.guard

    def is_interrupted(self) -> bool:
        """Whether a signal handler asks that interrupted this thread in the middle of something.

        It cannot wait for the locks that its own thread holds, so it goes at once and changes nothing.
        """
        here = self._here
        return not here.in_listener and bool(here.guard._is_owned())  # noqa: SLF001 - as in TicketQueue

    def subscribe(self, layer: Audience) -> None:
        """Report the store's events to the listener of this layer's stack."""
        self._audience.add(layer)

    def operation(self, turn: Turn, now: float) -> Run:
        """Ask the store for permits."""

        def run(_left: float) -> None:
            with self.guard:
                self.carry(now, turn.call)

        async def arun(_left: float) -> None:
            if self._try_lease is not None:
                with self.guard:
                    if self.carry(now, turn.call, lease=self._try_lease):
                        return
            from anyio import CapacityLimiter
            from anyio.to_thread import run_sync

            # The member keeps what the thread brings, so a cancelled request may abandon it.
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
        """Ask the store and pass its answer to the member. Returns whether no further call is needed."""
        member = self.member
        if member.is_lost and not probes:
            return True
        self._call = call = call or self._call
        ask = member.begin(now)
        if ask is None:
            return True
        try:
            answer = (lease or self.store.lease)(ask)
            if answer is not None or lease is None:
                checked(answer)
        except ConfigurationError as error:
            if member.known is None and not member.is_lost:
                member.end(ask, None, now)
                raise
            self._lose(ask, error, call)
        except Exception as error:  # noqa: BLE001 - the limiter continues, whatever a store raises
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
            self._steer(answer, member.now if now is None else now)
        return True

    def run_errand(self) -> None:
        """Report to the store what no request will: a refusal, or returned places."""
        if not self.member.has_news:
            return
        if self._is_instant:
            self.carry(None)
        else:
            self._errands.wake()

    def work(self) -> None:
        """Do what no request does: check whether the store is back, or report to it."""
        if self.member.is_lost:
            self.carry(None, probes=True)
        elif self.member.has_news:
            self.carry(None)

    def _steer(self, lease: Lease, now: float) -> None:
        if self.pilot is None:
            return
        law = self.pilot.steer(lease, self.member.waiting, now)
        if law is None:
            return
        try:
            done = self.store.amend(lease.epoch, law)
        except Exception:  # noqa: BLE001 - any error, as for a lease; the next lease notices an outage
            logger.debug("cannot write the adaptive state", exc_info=True)
            done = False
        self.pilot.steered(lease, law, done=done)

    def _lose(self, ask: Ask, error: Exception, call: CallInfo) -> None:
        returning = self.member.is_returning
        if self.member.lose(ask):
            # A store that fails again while it is coming back is still in the same outage.
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
        """Notify each listener once, even if it listens to several stacks."""
        told: list[Any] = []
        for layer in list(self._audience):
            listener = layer.context.listener
            for each in listener.each if isinstance(listener, Listeners) else (listener,):
                if not any(each is other for other in told):
                    told.append(each)
        before, self._here.in_listener = self._here.in_listener, True
        try:
            for each in told:
                try:
                    each(event)
                except Exception:  # noqa: BLE001 - user code; whatever it raises
                    logger.exception("the listener failed on %s", event)
        finally:
            self._here.in_listener = before  # A listener may send, and so cause another event.


class _Errands:
    """A thread that calls the store when no request does. It ends when there is nothing to do."""

    def __init__(self, link: Link) -> None:
        self._link = ref(link)
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Wake the thread, or start it."""
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
