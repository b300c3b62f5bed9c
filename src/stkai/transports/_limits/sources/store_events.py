"""The events about a share and its store."""

from typing import Any, Final
from weakref import WeakValueDictionary

from ...._log import Listeners
from ....events import CallInfo, Event, QuotaDisagreement, StoreLost, StoreRestored
from ....stores import Quota

_NOBODY: Final = CallInfo(id=0, method="", host="")


class StoreEvents:
    """Notifies each listener of the stacks over one limiter once.

    Args:
        share: the name of the quota.
        store: where it lives, without credentials.

    Attributes:
        call: the call that last had to do with the store.
    """

    def __init__(self, share: str, store: str) -> None:
        self._share, self._store = share, store
        # By id, and not a WeakSet: threads may add to it while another one looks at all of it.
        self._audience: WeakValueDictionary[int, Any] = WeakValueDictionary()
        self._disagreed: Quota | None = None
        self.call = _NOBODY

    def subscribe(self, layer: Any) -> None:
        """Notify the listener in the `context` of this layer as well."""
        self._audience[id(layer)] = layer

    def lost(self, error: BaseException) -> None:
        """The store cannot be reached."""
        reason = f"{type(error).__name__}: {error}"
        self._emit(StoreLost(call=self.call, share=self._share, store=self._store, reason=reason))

    def restored(self) -> None:
        """The store answers again."""
        self._emit(StoreRestored(call=self.call, share=self._share, store=self._store))

    def compare(self, mine: Quota, theirs: Quota) -> None:
        """Report, once, that another quota than this member's is in force."""
        if mine == theirs:
            self._disagreed = None
        elif theirs != self._disagreed:
            self._disagreed = theirs
            rates: dict[str, Any] = {
                "mine": mine.rate,
                "theirs": theirs.rate,
                "differences": mine.differences(theirs),
            }
            self._emit(QuotaDisagreement(call=self.call, share=self._share, **rates))

    def _emit(self, event: Event) -> None:
        listeners: dict[int, Any] = {}
        for layer in filter(None, [known() for known in self._audience.valuerefs()]):
            listener = layer.context.listener
            each = listener.each if isinstance(listener, Listeners) else (listener,)
            listeners.update((id(one), one) for one in each)
        Listeners(tuple(listeners.values()))(event)
