"""The headers of a client's request: the caller's, checked, and the others that httpx itself sends."""

import re
from collections.abc import Mapping
from functools import cache
from operator import itemgetter
from typing import Final, NamedTuple, Self

import httpx

from ._checks import TOKEN
from ._errors import InvalidArgumentError

_NAME: Final = TOKEN.encode()
_lower_name: Final = itemgetter(1)
"""The name in lower case of one of httpx's headers."""

_VALUE: Final = rb"(?:[^\x00\s](?:[^\x00\n\r\v\f]*[^\x00\s])?)?"
"""RFC 9110, sections 5.1 and 5.5, as h11 implements them."""


def headers_of(
    method: str, url: httpx.URL, given: Mapping[str, str] | None, content: bytes | None
) -> list[tuple[bytes, bytes]]:
    """All headers of a request, in httpx's order; the given ones replace others of the same name.

    Raises:
        InvalidArgumentError: the given ones cannot be sent.
    """
    headers = [(b"Host", url.netloc), *default_headers()]
    if method == "POST":
        headers.append((b"Content-Length", b"%d" % len(content or b"")))
    if content is not None:
        headers.append((b"Content-Type", b"application/json"))
    if not given:
        return headers
    raw = check_headers(given).raw
    names = {name.lower() for name, _ in raw}
    return [*((name, value) for name, value in headers if name.lower() not in names), *raw]


def check_headers(given: Mapping[str, str] | None) -> httpx.Headers:
    """The headers, if they can be sent.

    Raises:
        InvalidArgumentError: they cannot. The message names the header and never shows its value, which may be a
            secret.
    """
    form = "headers must be a dict of strings, in ASCII"
    try:
        headers = httpx.Headers(given)
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{form}: one contains other characters") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidArgumentError(f"{form}: {error}") from error
    for name, value in headers.raw:
        if not re.fullmatch(_NAME, name):
            msg = f"{form}: {name.decode('ascii', 'replace')!r} is not the name of a header"
            raise InvalidArgumentError(msg)
        if not re.fullmatch(_VALUE, value):
            msg = (
                f"{form}: the value of {name.decode()} begins or ends with white space, or contains a line break; strip"
                " it if it comes from a file"
            )
            raise InvalidArgumentError(msg)
    return headers


class Fields(NamedTuple):
    """Headers to be set on many requests, encoded once.

    Attributes:
        names: their names, in lower case.
        items: each the name, the name in lower case, and the value.
    """

    names: tuple[bytes, ...]
    items: tuple[tuple[bytes, bytes, bytes], ...]

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Self:
        """The headers in `given`, checked like those of a call."""
        items = tuple((name, name.lower(), value) for name, value in check_headers(given).raw)
        return cls(tuple({name for _, name, _ in items}), items)


def with_fields(headers: httpx.Headers, fields: Fields) -> httpx.Headers:
    """A copy of the headers, of httpx or httpx2, with these fields in place of all others of the same names."""
    names, items = fields
    given = getattr(headers, "_list", None)
    if given is None:  # Private in both packages: a later version may keep its headers in another way.
        copy = headers.copy()
        for name, _, value in items:
            copy[name.decode("ascii")] = value.decode("latin-1")
        return copy
    kept = [*given, *items]
    for name in names:
        if name in map(_lower_name, given):
            kept = [*(each for each in given if each[1] not in names), *items]
    copy = object.__new__(type(headers))
    copy.__dict__ = {**headers.__dict__, "_list": kept}
    return copy


@cache
def default_headers() -> list[tuple[bytes, bytes]]:
    """What httpx itself sends: the content codings depend on what is installed."""
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
        return client.headers.raw
