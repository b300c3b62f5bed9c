"""The packages httpx and httpx2: their classes look alike but none is shared, so everything belongs to one of the two.

And what requests and urllib3 return and raise, in httpx's terms. Neither needs to be installed.

httpx2 is never imported here: until the program imports it, no object of it can arrive. The family of an object is
found by `isinstance` against the packages that are loaded, since some SDKs change the `__module__` of classes.
Annotations say httpx throughout: what they promise holds for both.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

import httpx

from ._errors import rebuilt

T = TypeVar("T")

if TYPE_CHECKING:
    import httpx2

    class Transport(httpx.BaseTransport, httpx2.BaseTransport):
        """Fits into the sync clients of both packages."""

        def handle_request(self, request: Any) -> Any: ...

    class AsyncTransport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):
        """Fits into the async clients of both packages."""

        async def handle_async_request(self, request: Any) -> Any: ...

else:  # Neither package checks the class of a transport.
    Transport, AsyncTransport = httpx.BaseTransport, httpx.AsyncBaseTransport


class SyncWire(Protocol):
    """A sync transport of either package."""

    def handle_request(self, request: Any) -> Any: ...


class AsyncWire(Protocol):
    """An async transport of either package."""

    async def handle_async_request(self, request: Any) -> Any: ...


class Family(Protocol):
    """What is used of either package, by the names that both share."""

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
    # A package that another thread is importing has no `__all__` yet. An aliased httpx2 is httpx itself.
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
    """The package whose requests a transport takes; None if it takes both.

    A transport whose base class does not tell has the answer in its attribute `family`.
    """
    if hasattr(wire, "family"):
        family: Family | None = wire.family
        return family
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
    """Make an error one of the request's package as well, since the caller expects that package's errors."""
    # In place, so that the error keeps its traceback, its cause, and all references to it.
    error.__class__ = of_family(type(error), family_of(request))


def error_for(kind: type[httpx.RequestError], message: str, request: httpx.Request) -> httpx.RequestError:
    """An error of the package that made the request."""
    error = kind(message, request=request)
    adopt(error, request)
    return error


_twofold: dict[tuple[Any, str], Any] = {}
"""The classes made so far: two errors of one kind have the same class."""


def of_family(kind: type[T], family: Family) -> type[T]:
    """The class, if it belongs to that package; otherwise one that is both, by the nearest base that has a twin."""
    key = (kind, family.__name__)
    if key not in _twofold:
        _twofold.setdefault(key, _both(kind, family))
    both: type[T] = _twofold[key]
    return both


def _both(kind: Any, family: Family) -> Any:
    twin = next(filter(None, (_twin(base, family) for base in kind.__mro__)), None)
    if twin is None or issubclass(kind, twin):
        return kind
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    if issubclass(kind, Exception):
        # A class that was made at run time cannot be unpickled by name.
        names["__reduce__"] = lambda error: (
            _restore,
            (rebuilt(kind, error.args, error.__dict__), family.__name__),
        )
    return type(kind.__name__, (kind, twin), names)


def _restore(error: Exception, name: str) -> Exception:
    for family in families():
        if family.__name__ == name:
            error.__class__ = of_family(type(error), family)
    return error


_ORIGINAL: Final = "stkai.original"  # The extension of a response that represents one of another package.


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
        # As http.client decodes them, unless they know how they were decoded, as httpx2's do.
        encoding = getattr(answer.headers, "encoding", "latin-1")
        headers = httpx.Headers(dict(answer.headers), encoding=encoding)
    except (AttributeError, LookupError, TypeError, ValueError):
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
