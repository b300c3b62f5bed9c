"""Translates what requests and urllib3 return and raise into httpx's terms. Neither needs to be installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx

from ._families import Family, of_family

_ORIGINAL: Final = "stkai.original"
"""The extension of a response that represents one of another package."""


def as_httpx(answer: Any) -> httpx.Response:
    """An `httpx.Response` with the status and headers of any other response; closing it closes that.

    The body stays where it is. Anything that cannot be read counts as a 200 without headers; see also `original`.
    """
    if isinstance(answer, httpx.Response):
        return answer
    status = getattr(answer, "status_code", None)
    if not isinstance(status, int) or not 100 <= status <= 599:
        status = 200
    try:
        headers = httpx.Headers(dict(answer.headers))
    except (AttributeError, TypeError, ValueError):
        headers = httpx.Headers()
    return httpx.Response(status, headers=headers, stream=_Elsewhere(answer), extensions={_ORIGINAL: answer})


def original(response: httpx.Response) -> Any:
    """The response that another one represents; any other response is returned as it is."""
    return response.extensions.get(_ORIGINAL, response)


class _Elsewhere(httpx.SyncByteStream):
    """The body of a response that is read elsewhere."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        if hasattr(self._answer, "close"):
            self._answer.close()


@contextmanager
def httpx_errors(family: Family) -> Iterator[None]:
    """Turn what requests and urllib3 raise into what httpx would have raised."""
    try:
        yield
    except Exception as error:
        kind = httpx_kind(error)
        if kind is None:
            raise
        raise of_family(kind, family)(str(error)) from error


def httpx_kind(error: Exception) -> type[httpx.RequestError] | None:
    """The httpx counterpart of an error of requests or urllib3; None for any other error."""
    if "requests" not in sys.modules:
        return None
    import requests.exceptions as theirs
    import urllib3.exceptions as below

    # Without a connection, nothing was sent.
    inner = error.args[0] if error.args else None
    unsent = isinstance(getattr(inner, "reason", inner), below.NewConnectionError)
    kinds: list[tuple[tuple[type[Exception], ...], type[httpx.RequestError]]] = [
        ((theirs.ConnectTimeout,), httpx.ConnectTimeout),
        ((theirs.Timeout, below.ReadTimeoutError), httpx.ReadTimeout),
        ((theirs.ProxyError,), httpx.ProxyError),
        ((theirs.SSLError,), httpx.ConnectError),
        ((theirs.ChunkedEncodingError, below.ProtocolError), httpx.RemoteProtocolError),
        ((theirs.ConnectionError,), httpx.ConnectError if unsent else httpx.ReadError),
        ((below.SSLError,), httpx.ReadError),
        ((theirs.ContentDecodingError, below.DecodeError), httpx.DecodingError),
        ((theirs.TooManyRedirects,), httpx.TooManyRedirects),
        ((theirs.MissingSchema, theirs.InvalidSchema, theirs.InvalidURL), httpx.UnsupportedProtocol),
        ((theirs.RequestException, below.HTTPError), httpx.TransportError),
    ]
    return next((kind for given, kind in kinds if isinstance(error, given)), None)
