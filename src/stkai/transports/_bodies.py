"""Bodies of responses, read by a driver: whole, in part, or only to reuse the connection."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import httpx

from .._families import family_of
from ._call import copy_request
from ._hand import TooLateError

_SHORT: Final = 65_536
"""Bytes; a body that nobody wants is read up to this size."""

_DIGITS: Final = len(str(_SHORT))

BRIEF: Final = 1.0
"""Seconds; a body that nobody wants is read for at most this long."""

_LONGEST: Final = 1e9
"""Seconds; no socket takes any number of them."""


def briefly(left: float) -> float:
    """Seconds for a body that nobody wants; most of the time left until a deadline is kept for another attempt."""
    return min(BRIEF, left / 4)


def timeouts(seconds: float) -> dict[str, float]:
    """A timeout in the form in which wires take it."""
    return dict.fromkeys(("connect", "read", "write", "pool"), min(seconds, _LONGEST))


def limited(request: httpx.Request, seconds: float) -> httpx.Request:
    """The request with no timeout longer than `seconds`."""
    seconds = min(seconds, _LONGEST)
    given = request.extensions.get("timeout", {})
    keys = ("connect", "read", "write", "pool")
    timeout = {key: seconds if given.get(key) is None else min(seconds, given[key]) for key in keys}
    return copy_request(request, extensions={**request.extensions, "timeout": timeout})


def unlimited(request: httpx.Request, sent: httpx.Request) -> None:
    """Give the body the caller's timeouts: its wire looks them up when it is read."""
    given = request.extensions.get("timeout", {})
    sent.extensions["timeout"].update({key: given.get(key) for key in sent.extensions["timeout"]})


def is_there(response: httpx.Response) -> bool:
    """Whether the body has been read."""
    return hasattr(response, "_content")


def read(response: httpx.Response) -> None:
    """Read and decode the body."""
    try:
        response.read()
    finally:
        response.close()


def load(response: httpx.Response, limit: float, left: Callable[[], float] = lambda: math.inf) -> None:
    """Fetch up to `limit` bytes, still encoded, and close the stream; the response can be read as before.

    Raises:
        TooLateError: `left()` seconds were 0 or less before the end.
    """
    if not is_there(response):
        chunks: list[bytes] = []
        fetch(response, limit, left, chunks)
        keep(response, chunks)


def keep(response: httpx.Response, chunks: list[bytes]) -> None:
    """Make these chunks the body of a response whose stream has been fetched."""
    response.stream = family_of(response).ByteStream(b"".join(chunks))


def fetch(response: httpx.Response, limit: float, left: Callable[[], float], chunks: list[bytes]) -> None:
    """Fetch up to `limit` bytes into `chunks`, still encoded, and close the stream.

    Raises:
        TooLateError: `left()` seconds were 0 or less before the end.
    """
    body: Any = response.stream
    size = 0
    try:
        for chunk in body:
            chunks.append(chunk)
            size += len(chunk)
            if size >= limit:
                break
            if left() <= 0:
                raise TooLateError
    finally:
        body.close()


def drain(response: httpx.Response, now: Callable[[], float]) -> None:
    """Close the response, after reading a short body, if it comes quickly, so that the connection stays open."""
    try:
        if is_short(response):
            until, size = now() + BRIEF, 0
            body: Any = response.stream
            for chunk in body:
                size += len(chunk)
                if size > _SHORT or now() > until:
                    break
    except Exception:  # noqa: BLE001, S110 - nobody wants the response any more, however it ends
        pass
    finally:
        with suppress(Exception):
            response.close()


def is_short(response: httpx.Response) -> bool:
    """Whether a body is still to come, and not known to be long."""
    if response.is_closed or is_there(response):
        return False
    length = response.headers.get("content-length", "")
    if len(length) > _DIGITS:  # Python refuses to convert thousands of digits.
        return False
    return not length.isdecimal() or int(length) <= _SHORT


async def aread(response: httpx.Response) -> None:
    """Read and decode the body."""
    body: Any = response.stream
    try:
        await response.aread()
        await response.aclose()
    except BaseException:
        import anyio

        with anyio.CancelScope(shield=True):
            await response.aclose()
            # httpx2 closes it too, but without a shield: cancelled there, it marks the response as closed.
            await body.aclose()
        raise


async def aload(
    response: httpx.Response,
    limit: float,
    left: Callable[[], float] = lambda: math.inf,
    *,
    brief: bool = False,
) -> None:
    """Fetch up to `limit` bytes, still encoded, and close the stream; the response can be read as before.

    If `brief`, drop what has not arrived soon.

    Raises:
        TooLateError: `left()` seconds were 0 or less before the end.
    """
    if is_there(response):
        return
    import anyio

    body: Any = response.stream
    chunks = aiter(body)
    kept: list[bytes] = []
    late = False
    try:
        # Leaving the loop early would strand the wire's generators, of which trio warns: cancel the next read instead.
        with anyio.move_on_after(briefly(left()) if brief else None) as enough:
            size = 0
            async for chunk in chunks:
                if enough.cancel_called:
                    # This body never waits, so that nothing can be cancelled; it is let run out, but not for ever.
                    size += len(chunk)
                    if late or size >= limit + _SHORT:
                        break
                    continue
                kept.append(chunk)
                size += len(chunk)
                late = size < limit and left() <= 0
                if late or size >= limit:
                    enough.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await _finish(chunks)
            await body.aclose()
    if late:
        raise TooLateError
    keep(response, kept)


async def adrain(response: httpx.Response, left: float = math.inf) -> None:
    """Close the response, after reading a short body, if it comes quickly, so that the connection stays open."""
    import anyio

    try:
        if left > 0 and is_short(response):
            body: Any = response.stream
            chunks, size = aiter(body), 0
            try:
                with anyio.move_on_after(briefly(left)) as scope:
                    async for chunk in chunks:
                        size += len(chunk)
                        if size > 2 * _SHORT:
                            break
                        if size > _SHORT:
                            scope.cancel()  # As in `aload`.
            finally:
                with anyio.CancelScope(shield=True):
                    await _finish(chunks)
    except Exception:  # noqa: BLE001, S110 - nobody wants the response any more, however it ends
        pass
    finally:
        with anyio.CancelScope(shield=True), suppress(Exception):
            await response.aclose()


async def _finish(chunks: Any) -> None:
    """End a generator that was left early: trio warns of those left to the garbage collector."""
    if hasattr(chunks, "aclose"):
        await chunks.aclose()
