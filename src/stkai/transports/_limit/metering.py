"""Settles what a call has cost when the body of its answer has ended, however it is read."""

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any, Final

import httpx

from ..._errors import InvalidArgumentError
from ..._families import family_of, of_family
from .._options import check_cost

_logger = logging.getLogger("stkai")

LONGEST: Final = 16_777_216
"""Bytes as received; a longer answer does not report a usage, and is not worth keeping in memory."""

LONGEST_DECODED: Final = 67_108_864
"""Bytes after decoding; a short body may unpack to gigabytes."""

_PIECE: Final = 1024
"""Bytes that are unpacked at once; with gzip, they become at most a mebibyte."""

_CODING: Final = "content-encoding"


class TooLongError(Exception):
    """The answer is too long to be kept."""

    def __init__(self) -> None:
        super().__init__("the answer is too long to look for its usage")


class Meter:
    """Settles the costs of one layer's calls.

    Args:
        settle: reads from an answer what its call cost.
    """

    def __init__(self, settle: Callable[[httpx.Response], float | None]) -> None:
        self._settle = settle
        self._has_warned = False

    def watch(self, response: httpx.Response, tell: Callable[[float], None]) -> None:
        """Call `settle` with the complete response, once, and `tell` with the cost it returns.

        None, a bad number, an exception or a huge body leaves the estimate in place: the caller gets the answer anyway.
        """

        def ended(body: bytes | None) -> None:
            try:
                cost = self._settle(response if body is None else _whole(response, body))
                if cost is not None:
                    tell(check_cost(cost))
            except InvalidArgumentError as error:
                self._complain(str(error))
            except TooLongError as error:
                _logger.debug("a call keeps its estimated cost: %s", error)
            except Exception as error:  # noqa: BLE001 - user code; whatever it raises
                self._complain(f"settle raised {error!r}")

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

    def _complain(self, why: str) -> None:
        """Warn about the first failure only: the function usually fails on every answer."""
        level = logging.DEBUG if self._has_warned else logging.WARNING
        self._has_warned = True
        _logger.log(level, "a call keeps its estimated cost: %s", why)


def _whole(response: httpx.Response, body: bytes) -> httpx.Response:
    """The same response with its whole body, decoded.

    Raises:
        TooLongError: it is too long when decoded.
    """
    headers = response.headers
    if _CODING in headers:
        pieces: Any = of_family(_Pieces, family_of(response))(body)
        packed = type(response)(response.status_code, headers=headers, stream=pieces)
        kept = _Kept(LONGEST_DECODED)
        for part in packed.iter_bytes():
            kept.add(part)
            if kept.is_full:
                raise TooLongError
        body = b"".join(kept.chunks)
        headers = headers.copy()
        del headers[_CODING]
    return type(response)(response.status_code, headers=headers, content=body, request=_request(response))


def _request(response: httpx.Response) -> httpx.Request | None:
    try:
        return response.request
    except RuntimeError:
        return None


class _Kept:
    """The chunks of a body, up to a number of bytes; keeps nothing of a longer body."""

    def __init__(self, most: int) -> None:
        self.chunks: list[bytes] = []
        self._left = most

    @property
    def is_full(self) -> bool:
        """Whether there were more bytes."""
        return self._left < 0

    def add(self, chunk: bytes) -> None:
        self._left -= len(chunk)
        if self._left < 0:
            self.chunks.clear()
        else:
            self.chunks.append(chunk)

    def hand_over(self, ended: Callable[[bytes], None]) -> None:
        """Report that the body has ended, unless it was too long."""
        if not self.is_full:
            ended(b"".join(self.chunks))


class _Pieces(httpx.SyncByteStream):
    """A body in small pieces."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._body), _PIECE):
            yield self._body[start : start + _PIECE]


class _MeteredBody(httpx.SyncByteStream):
    """A body that keeps what passes through, and hands it over at the end."""

    def __init__(self, body: Any, ended: Callable[[bytes], None]) -> None:
        self._body, self._ended = body, ended

    def __iter__(self) -> Iterator[bytes]:
        kept = _Kept(LONGEST)
        for chunk in self._body:
            kept.add(chunk)
            yield chunk
        kept.hand_over(self._ended)

    def close(self) -> None:
        self._body.close()


class _AsyncMeteredBody(httpx.AsyncByteStream):
    """The same for async clients."""

    def __init__(self, body: Any, ended: Callable[[bytes], None]) -> None:
        self._body, self._ended = body, ended

    async def __aiter__(self) -> AsyncIterator[bytes]:
        kept = _Kept(LONGEST)
        async for chunk in self._body:
            kept.add(chunk)
            yield chunk
        kept.hand_over(self._ended)

    async def aclose(self) -> None:
        await self._body.aclose()


@cache
def _either(family: Any) -> Any:
    """The class of a body that can be read both ways."""
    return type(
        "_EitherMeteredBody", (of_family(_MeteredBody, family), of_family(_AsyncMeteredBody, family)), {}
    )
