"""Origins, the places that a token may go to (RFC 6454, section 4), and whether the way there is private."""

from ipaddress import ip_address
from typing import Final

import httpx

from ._errors import ConfigurationError

Origin = tuple[str, bytes, int | None]
"""Scheme, host and port."""

_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_ENCRYPTED: Final = frozenset({"https", "wss"})


def origin_of(url: httpx.URL) -> Origin:
    """The origin of a URL; the host is in its IDNA form, so look-alikes differ."""
    # httpx drops a default port, but not behind a scheme in upper case.
    scheme, port = url.scheme, url.port
    return scheme, url.raw_host.lower(), _PORTS.get(scheme) if port is None else port


def is_private(origin: Origin) -> bool:
    """Whether nobody on the way can read along: it is encrypted, or does not leave this machine."""
    scheme, host, _ = origin
    return scheme in _ENCRYPTED or host == b"localhost" or _is_loopback(host.decode("ascii"))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def parse_url(name: str, what: str, form: str) -> httpx.URL:
    """The URL in `name`, if it is one that could be sent to.

    Raises:
        ConfigurationError: it is not; says that `what` must be `form`.
    """
    try:
        url = httpx.URL(name)
    except (httpx.InvalidURL, TypeError) as error:
        msg = f"{what} must be {form}: {error}"
        raise ConfigurationError(msg) from error
    if url.userinfo:  # not shown: it may be a password, or a token
        msg = f"{what} must be {form}, without a user name or password"
        raise ConfigurationError(msg)
    if url.scheme not in {"http", "https"} or not url.host:
        msg = f"{what} must be {form}, not {name!r}"
        raise ConfigurationError(msg)
    return url


def parse_origin(name: str) -> httpx.URL:
    """The URL in `name`, if it is nothing but an origin.

    Raises:
        ConfigurationError: it is not `scheme://host` or `scheme://host:port`.
    """
    form = "scheme://host or scheme://host:port, such as https://api.example.com"
    url = parse_url(name, "an origin", form)
    if url.raw_path != b"/" or url.fragment or "*" in url.host:
        msg = f"an origin must be {form}, without path, query or wildcard, not {name!r}"
        raise ConfigurationError(msg)
    return url


def show_origin(url: httpx.URL) -> str:
    """Scheme, host and port, for people."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"
