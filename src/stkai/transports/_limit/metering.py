"""Settles what a call has cost when the body of its answer has ended, however it is read."""

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any

import httpx

from ..._errors import InvalidArgumentError
from ..._families import family_of, of_family
from .._options import check_cost

_logger = logging.getLogger("stkai")


def metered(
    response: httpx.Response, settle: Callable[[httpx.Response], float | None], tell: Callable[[float], None]
) -> None:
    """Call `settle` with the complete response, once, and `tell` with the cost it returns.

    None, a bad number or an exception leaves the estimate in place: the caller gets the answer anyway.
    """

    def ended(body: bytes | None) -> None:
        try:
            whole = response
            if body is not None:
                whole = type(response)(
                    response.status_code, headers=response.headers, content=body, request=_request(response)
                )
            cost = settle(whole)
            if cost is not None:
                tell(check_cost(cost))
        except InvalidArgumentError as error:
            _logger.warning("a call keeps its estimated cost: %s", error)
        except Exception as error:  # noqa: BLE001 - user code; whatever it raises
            _logger.warning("a call keeps its estimated cost: settle raised %r", error)

    if hasattr(response, "_content"):
        ended(None)
        return
    family: Any = family_of(response)
    stream: Any = response.stream
    if isinstance(stream, family.ByteStream):
        ended(b"".join(stream))
    elif not isinstance(stream, family.AsyncByteStream):
        response.stream = of_family(_MeteredBody, family)(stream, ended)
    elif not isinstance(stream, family.SyncByteStream):
        response.stream = of_family(_AsyncMeteredBody, family)(stream, ended)
    else:
        response.stream = _either(family)(stream, ended)


def _request(response: httpx.Response) -> httpx.Request | None:
    try:
        return response.request
    except RuntimeError:
        return None


class _MeteredBody(httpx.SyncByteStream):
    """A body that keeps what passes through, and hands it over at the end."""

    def __init__(self, body: Any, ended: Callable[[bytes], None]) -> None:
        self._body, self._ended = body, ended

    def __iter__(self) -> Iterator[bytes]:
        kept = []
        for chunk in self._body:
            kept.append(chunk)
            yield chunk
        self._ended(b"".join(kept))

    def close(self) -> None:
        self._body.close()


class _AsyncMeteredBody(httpx.AsyncByteStream):
    """The same for async clients."""

    def __init__(self, body: Any, ended: Callable[[bytes], None]) -> None:
        self._body, self._ended = body, ended

    async def __aiter__(self) -> AsyncIterator[bytes]:
        kept = []
        async for chunk in self._body:
            kept.append(chunk)
            yield chunk
        self._ended(b"".join(kept))

    async def aclose(self) -> None:
        await self._body.aclose()


@cache
def _either(family: Any) -> Any:
    """The class of a body that can be read both ways."""
    return type(
        "_EitherMeteredBody", (of_family(_MeteredBody, family), of_family(_AsyncMeteredBody, family)), {}
    )
