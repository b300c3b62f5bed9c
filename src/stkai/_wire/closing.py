"""Transports that are closed once and then refuse requests, as httpx's clients do."""

from typing import Self

import httpx

from ..transports._call import cannot_send


class Closable(httpx.BaseTransport):
    """A sync transport that knows whether it is closed.

    Raises:
        RuntimeError: it is entered, or `require_open` is called, after it was closed.
    """

    _closed = False

    def __enter__(self) -> Self:
        if self._closed:
            raise _cannot_reopen()
        return self

    def require_open(self) -> None:
        """Refuse a request if the transport is closed."""
        if self._closed:
            raise cannot_send()

    def close(self) -> None:
        closed, self._closed = self._closed, True
        if not closed:
            self._close()

    def _close(self) -> None:
        """Close what is underneath; called once."""
        raise NotImplementedError


class AsyncClosable(httpx.AsyncBaseTransport):
    """The async version of `Closable`."""

    _closed = False

    async def __aenter__(self) -> Self:
        if self._closed:
            raise _cannot_reopen()
        return self

    def require_open(self) -> None:
        """Refuse a request if the transport is closed."""
        if self._closed:
            raise cannot_send()

    async def aclose(self) -> None:
        closed, self._closed = self._closed, True
        if not closed:
            await self._aclose()

    async def _aclose(self) -> None:
        """Close what is underneath; called once."""
        raise NotImplementedError


def _cannot_reopen() -> RuntimeError:
    return RuntimeError("Cannot reopen a transport that has been closed: build another one.")
