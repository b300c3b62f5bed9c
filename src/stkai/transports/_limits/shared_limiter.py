"""What limiters have that may share their quota with other processes."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..._errors import ConfigurationError
from .plan import Cost
from .queue_limiter import QuotaLimiter
from .sources.source import Limits, Source

if TYPE_CHECKING:
    from .pace.group import GroupPace
    from .sources.leased import Leased


class SharedLimiter(QuotaLimiter):
    """A limiter that takes its permits from a group's store, if one of its sources does."""

    def __init__(
        self,
        *sources: Source,
        limits: Limits,
        methods: Iterable[str] | None = None,
        max_wait_time: float | None = None,
        cost: Cost | None = None,
    ) -> None:
        super().__init__(*sources, limits=limits, methods=methods, max_wait_time=max_wait_time, cost=cost)
        self._leased: Leased | None = next((source for source in sources if source.is_remote), None)  # type: ignore[assignment]
        if self._leased is not None:
            member = self._leased.member
            member.quota = member.quota._replace(methods=",".join(sorted(self.methods or ())))
            # Until then the client is kept, so that the end of the program finds it.
            weakref.finalize(self, self._leased.client.retire).atexit = False

    @property
    def share(self) -> str | None:
        """The name of the quota, if it is shared with other processes."""
        return None if self._leased is None else self._leased.member.share

    @property
    def store(self) -> Any:
        """The store of the shared quota; None if it is not shared."""
        return None if self._leased is None else self._leased.client.store

    @property
    def members(self) -> int:
        """The last known number of processes that share the quota, including this one."""
        return 1 if self._leased is None else self._leased.member.contact.members

    @property
    def rate(self) -> float:
        """Requests per second in force now; for the whole group if the quota is shared."""
        return self._rate() if self._leased is None else self._leased.member.rate

    def _rate(self) -> float:
        """Requests per second in force in a process that shares nothing."""
        raise NotImplementedError

    def subscribe(self, layer: Any) -> None:
        """Report the store's events to the listener of a layer's stack."""
        if self._leased is not None:
            self._leased.client.events.subscribe(layer)

    def close(self) -> None:
        """Report what was used, within a quarter of a second, and leave the group; the next request joins it again."""
        if self._leased is not None:
            self._leased.client.close()

    def _options(self) -> str:
        shared = "" if self._leased is None else f", share={self.share!r}, store={self.store!r}"
        return super()._options() + shared


def shared_source(
    share: str | None,
    store: Any,
    limits: Limits,
    *,
    alone: Callable[[], Sequence[Source]],
    pace: "GroupPace | None" = None,
) -> Source | None:
    """The source of a group's permits; None without a share.

    Args:
        share: the name of the quota.
        store: where it is kept.
        limits: the numbers of the quota.
        alone: makes the sources to use until the store is first reached.
        pace: computes the group's rate, for an adaptive limiter.

    Raises:
        ConfigurationError: `store` is given without `share`, or cannot be used, or the name is invalid.
    """
    if share is None:
        if store is not None:
            raise ConfigurationError("store= needs share=, the name of the quota to share")
        return None
    from ...stores._choose import store_from
    from ...stores._disk import check_share
    from .sources.leased import Leased, quota_of
    from .sources.member import Member
    from .sources.store_client import StoreClient, identity

    quota = quota_of(limits, "", promises=pace is None)
    member = Member(check_share(share), quota, identity, alone, steers=pace is not None)
    return Leased(StoreClient(member, store_from(store), pace))
