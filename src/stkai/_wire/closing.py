"""Transports that are closed once and then refuse requests, as httpx's clients do."""

from typing import Self

import httpx

from ..transports._call import cannot_send


class _ClosedOnce:
    """A transport that knows whether it is closed.

    Raises:
        RuntimeError: it is entered, or `require_open` is called, after it was closed.
    """

    _closed = False

    def require_open(self) -> None:
        """Refuse a request if the transport is closed."""
        if self._closed:
            raise cannot_send()

    def _reopen(self) -> Self:
        if self._closed:
            raise RuntimeError("Cannot reopen a transport that has been closed: build another one.")
        return self

    def _is_first_close(self) -> bool:
        closed, self._closed = self._closed, True
        return not closed


class Closable(_ClosedOnce, httpx.BaseTransport):
    """A sync transport that knows whether it is closed."""

    def __enter__(self) -> Self:
        return self._reopen()

    def close(self) -> None:
        if self._is_first_close():
            self._close()

    def _close(self) -> None:
        """Close what is underneath; called once."""
        raise NotImplementedError


class AsyncClosable(_ClosedOnce, httpx.AsyncBaseTransport):
    """The async version of `Closable`."""

    async def __aenter__(self) -> Self:
        return self._reopen()

    async def aclose(self) -> None:
        if self._is_first_close():
            await self._aclose()

    async def _aclose(self) -> None:
        """Close what is underneath; called once."""
        raise NotImplementedError
