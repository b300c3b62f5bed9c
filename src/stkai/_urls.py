"""URLs: which are accepted, their origin (RFC 6454), and whether their connection is private. Also safe file names."""

import os
import re
from collections.abc import Collection
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final
from urllib.parse import quote

import httpx

from ._errors import ConfigurationError, InvalidArgumentError, StkaiError
from ._secrets import MASK

Origin = tuple[str, bytes, int | None]  # Scheme, host and port.

WEB: Final = ("http", "https")  # The schemes of requests.

PROXIES: Final = ("http", "https", "socks5", "socks5h")  # The schemes of proxies.

DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}

_MAX_PORT: Final = 65_535  # Some resolvers take higher port numbers modulo 65,536.
_MAX_LABEL: Final = 63  # Characters between two dots of a host name (RFC 1035, section 2.3.4).

_ENCRYPTED: Final = frozenset({"https", "wss"})

_CREDENTIALS: Final = r"(?s)\A([a-z][a-z0-9+.-]{0,15}://)?.*@"
_IN_QUERY: Final = r"(?i)([?&][^=&#]*(?:auth|key|pass|pwd|secret|token)[^=&#]*=)[^&#]+"
_NO_PORT: Final = r"(rediss?://[^/?#:\[]*:)(?!\d*(?:[/?#,]|$))[^/?#,]+"
"""Text in the place of a store's port: it may be a password, if the host was forgotten."""


def absolute_url(text: str | httpx.URL, schemes: Collection[str] = WEB) -> httpx.URL:
    """The URL in `text`, without a default port; the ValueError for anything else never shows a password."""
    try:
        url = httpx.URL(str(httpx.URL(text)))  # twice: after "HTTPS://", the first keeps the default port
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise ValueError(_reason(text, error)) from None
    if url.scheme not in schemes or not url.host:
        raise ValueError(f"it needs {' or '.join(f'{scheme}://' for scheme in schemes)}, and a host")
    if (url.port or 0) > _MAX_PORT:
        raise ValueError(f"its port is above {_MAX_PORT}")
    labels = url.raw_host.removesuffix(b".").split(b".")
    if not all(0 < len(label) <= _MAX_LABEL for label in labels) and b":" not in url.raw_host:
        raise ValueError(f"a part of its host name is empty or longer than {_MAX_LABEL} characters")
    return url


def parse_url(
    text: str | httpx.URL, rule: str, *, hint: str = "", error: type[StkaiError] = ConfigurationError
) -> httpx.URL:
    """The URL in `text`, if a request can be sent to it, and it contains no credentials.

    The message of the error begins with `rule`, ends with `hint` if there are credentials, and shows no password.
    """
    try:
        url = absolute_url(text)
    except ValueError as problem:
        raise error(f"{rule}, not {_shown(text)}: {problem}") from None
    if url.userinfo:
        raise error(f"{rule}, without a user name or password{hint}")
    return url


def request_url(text: str | httpx.URL) -> httpx.URL:
    """The URL in `text`, if a request can be sent to it; raises an InvalidArgumentError that shows no password."""
    # Parsing is the most expensive step of a call, and programs use few URLs. Only text is sure to be hashable.
    return _cached(text) if isinstance(text, str) else _request_url(text)


def _request_url(text: str | httpx.URL) -> httpx.URL:
    hint = ": send credentials as a header, such as headers={'Authorization': 'Basic ...'}"
    rule = "url must be an absolute URL such as https://api.example.com/v1"
    return parse_url(text, rule, hint=hint, error=InvalidArgumentError)


_cached: Final = lru_cache(maxsize=256)(_request_url)


def is_origin(url: httpx.URL) -> bool:
    """Whether a URL consists of a scheme, a host and perhaps a port."""
    return not (url.raw_path not in {b"", b"/"} or url.fragment or url.userinfo or "*" in url.host)


def origin_of(url: httpx.URL) -> Origin:
    """The origin of a URL; the host is in its IDNA form, so look-alikes differ."""
    return url.scheme, url.raw_host.lower(), port_of(url)


def port_of(url: httpx.URL) -> int | None:
    """The port of a URL, even if it is the scheme's default, which httpx drops unless the scheme is in upper case."""
    return DEFAULT_PORTS.get(url.scheme) if url.port is None else url.port


def is_private(origin: Origin) -> bool:
    """Whether a connection is private: it is encrypted, or does not leave this machine.

    Subdomains of localhost do not count: some resolvers ask the network for them, despite RFC 6761, section 6.3.
    """
    scheme, host, _ = origin
    return scheme in _ENCRYPTED or host == b"localhost" or _is_loopback(host.decode("ascii"))


def is_this_machine(host: str) -> bool:
    """Whether a host is on loopback, where browsers use no proxy: localhost and its subdomains, 127.0.0.0/8, ::1."""
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)


@lru_cache(maxsize=256)
def _is_loopback(host: str) -> bool:
    address = address_of(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return address is not None and (mapped or address).is_loopback


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address, if a host is written as one; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _shown(text: object) -> str:
    """What was given instead of a URL; hidden if it may contain a password."""
    return "a URL with credentials" if "@" in str(text) else repr(text)


def _reason(text: object, error: Exception) -> str:
    """Why httpx cannot parse it. Hides what httpx quotes as a port if it may be part of a password with a slash."""
    if "@" in str(text):
        return "it cannot be read; write special characters of a password in escaped form, such as %2F for /"
    return f"its port is not a number up to {_MAX_PORT}" if "port" in str(error).lower() else str(error)


def parse_origin(name: str) -> httpx.URL:
    """The URL in `name`, if it is only an origin: `scheme://host` or `scheme://host:port`."""
    rule = "an origin must be scheme://host or scheme://host:port, such as https://api.example.com"
    url = parse_url(name, rule)
    if not is_origin(url):
        raise ConfigurationError(f"{rule}, without path, query or wildcard, not {_shown(name)}")
    return url


def mask_credentials(text: str) -> str:
    """The text, with the user name and password of a URL masked."""
    text = re.sub(_IN_QUERY, rf"\1{MASK}", text)
    if "@" in text:
        return re.sub(_CREDENTIALS, rf"\1{MASK}@", text)
    return re.sub(_NO_PORT, rf"\1{MASK}", text)


def show_origin(url: httpx.URL) -> str:
    """Scheme, host and port, for messages."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def full_path(path: str | os.PathLike[str], name: str = "path") -> Path:
    """The absolute path of a file or a directory, with `~` expanded; `name` is the argument that errors name."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigurationError(f"{name} must be a path, a string or a pathlib.Path, not {path!r}")
    return Path(os.path.expanduser(text)).absolute()  # noqa: PTH111 - Path raises for an unknown user


def file_name(name: str, suffix: str) -> str:
    """A unique file name for a name with any characters, even on file systems that ignore case."""
    digest = blake2b(name.encode(), digest_size=10).hexdigest()
    return f"{quote(name, safe='')[:60]}-{digest}{suffix}"
