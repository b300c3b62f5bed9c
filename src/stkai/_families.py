"""The packages httpx and httpx2: their classes look alike but none is shared, so each object belongs to one of the two.

Also converts responses and errors of requests and urllib3 into httpx's. Neither needs to be installed.

httpx2 is never imported here: until the program imports it, there are no objects of it. The family of an object is
found by `isinstance` with the classes of the loaded packages, since some SDKs change the `__module__` of classes.
Annotations say httpx throughout, but hold for both.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

import httpx

from ._errors import causes, rebuilt

T = TypeVar("T")

if TYPE_CHECKING:
    import httpx2

    class Transport(httpx.BaseTransport, httpx2.BaseTransport):
        """For the sync clients of both packages."""

        def handle_request(self, request: Any) -> Any: ...

    class AsyncTransport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):
        """For the async clients of both packages."""

        async def handle_async_request(self, request: Any) -> Any: ...

else:  # At run time, neither package checks the class of a transport.
    Transport, AsyncTransport = httpx.BaseTransport, httpx.AsyncBaseTransport


class SyncWire(Protocol):
    """A sync transport of either package."""

    def handle_request(self, request: Any) -> Any: ...


class AsyncWire(Protocol):
    """An async transport of either package."""

    async def handle_async_request(self, request: Any) -> Any: ...


class Family(Protocol):
    """The names that stkai uses of either package."""

    Request: type[httpx.Request]
    Response: type[httpx.Response]
    BaseTransport: type[httpx.BaseTransport]
    AsyncBaseTransport: type[httpx.AsyncBaseTransport]
    HTTPTransport: type[httpx.HTTPTransport]
    AsyncHTTPTransport: type[httpx.AsyncHTTPTransport]
    Limits: type[httpx.Limits]
    Proxy: type[httpx.Proxy]
    SyncByteStream: type[httpx.SyncByteStream]
    AsyncByteStream: type[httpx.AsyncByteStream]
    ByteStream: type[httpx.ByteStream]
    PoolTimeout: type[httpx.PoolTimeout]
    __name__: str


HTTPX: Final = cast(Family, httpx)


def families() -> tuple[Family, ...]:
    """The packages that the program has loaded; httpx is always one of them."""
    other = sys.modules.get("httpx2")
    # While another thread is importing a package, it has no `__all__` yet. httpx2 may be an alias of httpx.
    if other is None or other is httpx or not hasattr(other, "__all__"):
        return (HTTPX,)
    return HTTPX, cast(Family, other)


def family_of(thing: httpx.Request | httpx.Response) -> Family:
    """The package that made a request or a response."""
    if isinstance(thing, (httpx.Request, httpx.Response)):
        return HTTPX
    made_by = (family for family in families() if isinstance(thing, (family.Request, family.Response)))
    return next(made_by, HTTPX)


def family_of_wire(wire: object) -> Family | None:
    """The package whose requests a transport takes, by its `family` or its base class; None if it takes both."""
    if hasattr(wire, "family"):
        return cast("Family | None", wire.family)
    bases = [
        family for family in families() if isinstance(wire, (family.BaseTransport, family.AsyncBaseTransport))
    ]
    return bases[0] if len(bases) == 1 else None


def alike(*kinds: type[T]) -> tuple[type[T], ...]:
    """Classes of httpx, and their namesakes in httpx2 if that is loaded; for `isinstance` and `except`."""
    twins = [_twin(kind, family) for family in families()[1:] for kind in kinds]
    return (*kinds, *(twin for twin in twins if twin is not None))


def _twin(kind: type[T], family: Family) -> type[T] | None:
    name = kind.__name__
    return getattr(family, name, None) if getattr(httpx, name, None) is kind else None


def adopt(error: Exception, request: httpx.Request) -> None:
    """Make an error also an error of the request's package, which is what the caller expects."""
    # In place, so that the error keeps its traceback, its cause, and all references to it.
    error.__class__ = of_family(type(error), family_of(request))


def error_for(kind: type[httpx.RequestError], message: str, request: httpx.Request) -> httpx.RequestError:
    """An error of the package that made the request."""
    error = kind(message, request=request)
    adopt(error, request)
    return error


def response_like(
    request: httpx.Request,
    status: int,
    *,
    headers: Any = None,
    content: str | bytes | None = None,
    json: Any = None,
) -> httpx.Response:
    """A response of your own to a request, of the package that made the request: httpx or httpx2.

    Args:
        request: the request that the layer was given.
        status: the status code.
        headers: as for `httpx.Response`.
        content: the body.
        json: the body, to be encoded as JSON; instead of `content`.
    """
    return family_of(request).Response(status, headers=headers, content=content, json=json, request=request)


def of_family(kind: type[T], family: Family) -> type[T]:
    """The class, if it belongs to that package; otherwise a subclass that also derives from the twins of its bases."""
    both: type[T] = _both(kind, family)  # type: ignore[arg-type] # for mypy, no class is hashable
    return both


@cache
def _both(kind: Any, family: Family) -> Any:
    twins: list[Any] = []
    for twin in filter(None, (_twin(base, family) for base in kind.__mro__)):
        if not any(issubclass(known, twin) for known in (kind, *twins)):
            twins.append(twin)
    if not twins:
        return kind
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    if issubclass(kind, Exception):
        # A class that was made at run time cannot be unpickled by name.
        names["__reduce__"] = lambda error: (
            _restore,
            (rebuilt(kind, error.args, error.__dict__), family.__name__),
        )
    return type(kind.__name__, (kind, *twins), names)


def _restore(error: Exception, name: str) -> Exception:
    for family in families():
        if family.__name__ == name:
            error.__class__ = of_family(type(error), family)
    return error


_ORIGINAL: Final = "stkai.original"  # The extension of a response that represents one of another package.


def as_httpx(answer: Any) -> httpx.Response:
    """An `httpx.Response` with the status and headers of any other response; closing it closes the other.

    The body is not copied. Unreadable headers are left out; an unreadable status counts as 200. See also `original`.
    """
    if issubclass(type(answer), httpx.Response):  # `isinstance` is true of a mock, which has no extensions.
        return cast(httpx.Response, answer)
    status = getattr(answer, "status_code", None)
    if not isinstance(status, int) or not 100 <= status <= 599:
        status = 200
    try:
        # http.client decodes headers as latin-1; httpx2's headers know their encoding.
        encoding = getattr(answer.headers, "encoding", "latin-1")
        headers = httpx.Headers(dict(answer.headers), encoding=encoding)
    except (AttributeError, LookupError, TypeError, ValueError):
        headers = httpx.Headers()
    return httpx.Response(status, headers=headers, stream=_OtherBody(answer), extensions={_ORIGINAL: answer})


def original(response: httpx.Response) -> Any:
    """The response that an `as_httpx` response represents; any other response is returned unchanged."""
    return response.extensions.get(_ORIGINAL, response)


class _OtherBody(httpx.SyncByteStream):
    """The body of a response that is read from another object."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        if hasattr(self._answer, "close"):
            self._answer.close()


@contextmanager
def httpx_errors(family: Family) -> Iterator[None]:
    """Turn exceptions of requests and urllib3 into those that httpx would have raised."""
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

    # Without a connection, or before the end of its TLS handshake, nothing was sent, but a redirect is an answer.
    inner = error.args[0] if error.args else None
    functions = {frame.f_code.co_name for each in causes(error) for frame, _ in walk_tb(each.__traceback__)}
    is_first = "resolve_redirects" not in functions
    is_unconnected = isinstance(getattr(inner, "reason", inner), below.NewConnectionError)
    unsent = is_first and (is_unconnected or "do_handshake" in functions)
    kinds: list[tuple[tuple[type[Exception], ...], type[httpx.RequestError]]] = [
        ((theirs.ConnectTimeout,), httpx.ConnectTimeout if is_first else httpx.ReadError),
        ((theirs.Timeout, below.ReadTimeoutError), httpx.ReadTimeout),
        ((theirs.ProxyError,), httpx.ProxyError if is_first else httpx.ReadError),
        ((theirs.ChunkedEncodingError, below.ProtocolError), httpx.RemoteProtocolError),
        ((theirs.ConnectionError,), httpx.ConnectError if unsent else httpx.ReadError),
        ((below.SSLError,), httpx.ReadError),
        ((theirs.ContentDecodingError, below.DecodeError), httpx.DecodingError),
        ((theirs.TooManyRedirects,), httpx.TooManyRedirects),
        ((theirs.MissingSchema, theirs.InvalidSchema, theirs.InvalidURL), httpx.UnsupportedProtocol),
        ((theirs.RequestException, below.HTTPError), httpx.TransportError),
    ]
    return next((kind for given, kind in kinds if isinstance(error, given)), None)
