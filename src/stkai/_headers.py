"""The headers of a client's request: the caller's, checked, and those that httpx adds. Also copies of requests."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import Any, Final, Self

import httpx

from ._checks import HTTP_NAME
from ._errors import InvalidArgumentError

NAME: Final = HTTP_NAME.encode()
_Item = tuple[bytes, bytes, bytes]
"""A header as httpx stores it: its name, the name in lower case, and its value."""

_lower_name: Final = itemgetter(1)  # The name of an item, in lower case.

_NO_HEADERS: Final = httpx.Headers()
_known: Final[set[type]] = set()  # The classes of headers for which `_is_known` is true.

_new: Final = object.__new__
"""Bound once, since Python does not cache the lookup."""

VALUE: Final = rb"(?:[^\x00\s](?:[^\x00\n\r\v\f]*[^\x00\s])?)?"
"""RFC 9110, sections 5.1 and 5.5, as h11 implements them."""

SET_BY_CLIENTS: Final = frozenset({"host", "content-length", "transfer-encoding"})
"""Headers that the API reference's clients set themselves."""


def headers_of(
    method: str, url: httpx.URL, given: Mapping[str, str] | None, content: bytes | None
) -> httpx.Headers:
    """All headers of a request, in httpx's order; the given ones replace defaults of the same name."""
    items = [(b"Host", b"host", url.netloc), *default_items()]
    if content is not None or method == "POST":
        items.append((b"Content-Length", b"content-length", b"%d" % len(content or b"")))
    if content is not None:
        items.append((b"Content-Type", b"content-type", b"application/json"))
    if given:
        own = Fields.of(given)
        items = [*(each for each in items if each[1] not in own.names), *own.items]
    kind = type(_NO_HEADERS)
    if kind not in _known and not _is_known(kind):
        return kind([(name, value) for name, _, value in items])
    made = _new(kind)
    made._list, made._encoding = items, None  # noqa: SLF001
    return made


def check_headers(given: Mapping[str, str] | None) -> httpx.Headers:
    """Return the headers if they can be sent. An error names a header but not its value, which may be secret."""
    form = "headers must be a dict of strings, in ASCII"
    try:
        headers = httpx.Headers(given)
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{form}: one contains other characters") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidArgumentError(f"{form}: {error}") from error
    for name, value in headers.raw:
        if not re.fullmatch(NAME, name):
            msg = f"{form}: {name.decode('ascii', 'replace')!r} is not the name of a header"
            raise InvalidArgumentError(msg)
        if not re.fullmatch(VALUE, value):
            raise InvalidArgumentError(
                f"{form}: the value of {name.decode()} begins or ends with white space, or contains a line break; strip"
                " it if it comes from a file"
            )
    return headers


@dataclass(frozen=True, slots=True)  # Python reads slots faster than the fields of a NamedTuple.
class Fields:
    """Headers to set on many requests, encoded once."""

    names: tuple[bytes, ...]  # In lower case.
    items: list[_Item]

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Self:
        """The headers in `given`, checked like those of a call."""
        items = [(name, name.lower(), value) for name, value in check_headers(given).raw]
        return cls(tuple(name for _, name, _ in items), items)


def with_fields(headers: httpx.Headers, fields: Fields) -> httpx.Headers:
    """A copy of the headers, of httpx or httpx2, with these fields in place of all others of the same names."""
    kind = type(headers)
    if kind not in _known and not _is_known(kind):
        copy = headers.copy()
        for name, _, value in fields.items:
            copy[name.decode("ascii")] = value.decode("latin-1")
        return copy
    kept = headers._list  # noqa: SLF001
    for name in fields.names:
        if name in map(_lower_name, kept):  # Rare, and cheaper to check than to filter.
            kept = [each for each in kept if each[1] != name]
    made = _new(kind)  # The items need not be encoded again.
    made._list, made._encoding = kept + fields.items, headers._encoding  # noqa: SLF001
    return made


def _is_known(kind: type[httpx.Headers]) -> bool:
    """Whether headers of this class have just these attributes, which httpx and httpx2 keep private and may change."""
    if vars(kind()).keys() == {"_list", "_encoding"}:
        _known.add(kind)
    return kind in _known


def copy_request(
    request: httpx.Request, headers: httpx.Headers | None = None, extensions: dict[str, Any] | None = None
) -> httpx.Request:
    """A copy of the request with other headers or extensions; shares the body, and leaves the original unchanged."""
    copy = _new(type(request))
    known = request.__dict__
    if len(known) == 6 and "_content" in known:  # A plain request with its body in memory: twice as fast.
        copy.method, copy.url, copy.stream = request.method, request.url, request.stream
        copy._content = request._content  # noqa: SLF001
    else:
        copy.__dict__.update(known)
    copy.headers = request.headers if headers is None else headers
    copy.extensions = request.extensions if extensions is None else extensions
    return copy


def has_field(headers: httpx.Headers, *names: bytes) -> bool:
    """Whether there is a header of one of these names (in lower case), without decoding all headers, as httpx would."""
    items = getattr(headers, "_list", None)
    if items is None:
        return any(name.decode() in headers for name in names)
    present = map(_lower_name, items)
    return names[0] in present if len(names) == 1 else not set(names).isdisjoint(present)


@cache
def default_items() -> list[_Item]:
    """httpx's own default headers; the content codings depend on what is installed."""
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
        return [(name, name.lower(), value) for name, value in client.headers.raw]
