"""Notifies once when the body of a response has ended: read to its end, closed early, broken, or collected unread.

This is when a limiter frees a slot, costs are settled, and a pool gets its connection back. For sync and async bodies.
The end is reported when the body is closed, which its reader does at the end.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from enum import Enum
from typing import Any, Final

import httpx

from .._abandonable import GivenUpError, do_within
from .._families import family_of, of_family
from .._process import is_interrupt, raise_interrupt

CLEAN_UP_LIMIT: Final = 1.0
"""The maximum seconds that a clean-up may take."""


class BodyEnd(Enum):
    WHOLE = "read to its end"
    CLOSED = "closed early, or broken"
    DROPPED = "collected unread"
    """Reported by a finalizer: in any thread, at any moment, possibly while the thread holds a lock."""


Ended = Callable[[BodyEnd], object]
"""Called once. For `DROPPED`, it must only record the fact, as with `deque.append`: see `BodyEnd.DROPPED`."""


def when_body_ends(
    response: httpx.Response, ended: Ended, each: Callable[[bytes], object] | None = None
) -> None:
    """Call `ended` once when the body has ended and is closed, and `each` with every chunk, still encoded.

    A body that is already in memory ends at once.
    """
    if hasattr(response, "_content"):
        if each is not None:
            each(response.content)
        ended(BodyEnd.WHOLE)
        return
    family = family_of(response)
    body: Any = response.stream
    kind: Any = _EitherWatchedBody
    if not isinstance(body, family.AsyncByteStream):
        kind = WatchedBody
    elif not isinstance(body, family.SyncByteStream):
        kind = AsyncWatchedBody
    response.stream = of_family(kind, family)(body, ended, each)


class _Watched:
    """The parts that sync and async bodies share."""

    _is_whole = _is_closed = False

    def __init__(self, body: Any, ended: Ended | None, each: Callable[[bytes], object] | None = None) -> None:
        self._body, self._each, self._ended = body, each, ended

    def _end(self, how: BodyEnd) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(how)

    def give_up(self) -> None:
        """Report the end of a body that cannot be closed, because an interrupt has left a lock of its wire held."""
        self._is_closed = True
        self._end(BodyEnd.CLOSED)
        give_up(self._body)

    def __del__(self) -> None:
        if getattr(self, "_ended", None) is not None:
            self._end(BodyEnd.DROPPED)


class WatchedBody(_Watched, httpx.SyncByteStream):
    """A body that closes itself if reading it fails or is abandoned, and reports its end when it is closed."""

    def __iter__(self) -> Iterator[bytes]:
        try:
            if self._each is None:
                yield from self._body
            else:
                for chunk in self._body:
                    self._each(chunk)
                    yield chunk
        except BaseException as error:
            if is_interrupt(error):
                try:
                    do_within(CLEAN_UP_LIMIT, self.close)
                except GivenUpError:
                    self.give_up()
                raise_interrupt(error)
            else:
                self.close()
            raise
        self._is_whole = True

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        how = BodyEnd.CLOSED
        try:
            self._body.close()
            how = BodyEnd.WHOLE if self._is_whole else how
        finally:
            self._end(how)


class AsyncWatchedBody(_Watched, httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        each = self._each
        try:
            async for chunk in self._body:
                if each is not None:
                    each(chunk)
                yield chunk
        except BaseException:
            await self.aclose()
            raise
        self._is_whole = True

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        how = BodyEnd.CLOSED
        try:
            await self._body.aclose()
            how = BodyEnd.WHOLE if self._is_whole else how
        except BaseException:  # Such as a cancellation: the driver closes it once more, under a shield.
            self._is_closed = False
            raise
        finally:
            self._end(how)


class _EitherWatchedBody(WatchedBody, AsyncWatchedBody):
    """A body that can be read synchronously and asynchronously."""


def give_up(body: Any) -> None:
    """Report the end of a body that cannot be closed, if it is watched."""
    if isinstance(body, _Watched):
        body.give_up()
