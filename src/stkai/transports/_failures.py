"""What an error means: would it recur, may the server have acted, and what can the user do about it?"""

import re
import socket
import ssl
from datetime import datetime
from traceback import walk_tb
from typing import Final, NamedTuple

import httpx

from .._errors import (
    ClientSideRateLimitError,
    DeadlineExceededError,
    RetryableError,
    ServerSideRateLimitError,
    causes,
    describe,
    visible,
)
from .._families import alike, as_httpx
from .._headers import has_field
from ._retry_after import retry_after

CONNECT_ERRORS: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)
"""The errors of connecting. A proxy error occurs before the tunnel is open, so the server has seen nothing."""

TRANSIENT: Final = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
"""Network errors that may not recur at the next attempt."""

_PROXY_REFUSES: Final = r"4(?!08|29)\d\d\b|.*(username|password|credential|auth|rules)"
"""Matches httpx's ProxyError if the proxy rejects the credentials or the client. 408 and 429 are temporary."""

_TLS_ALERT: Final = r"\x15\x03"
"""The start of a TLS port's answer to plain HTTP, as the parser's message shows it."""

_NO_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"}
)
"""OpenSSL's reasons if the peer's reply to the ClientHello is not TLS."""

_NO_CLIENT_CERTIFICATE: Final = (
    r"ALERT_(CERTIFICATE_|BAD_CERTIFICATE|UNSUPPORTED_CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED)"
)
"""OpenSSL's reason if the server requires a client certificate, or a different one; RFC 8446, section 6.2."""

_UNTRUSTED: Final = frozenset({18, 19, 20, 21})
"""OpenSSL's X509_V_ERR_* codes for certificates of an unknown authority."""

_NO_AUTHORITY: Final = (
    "this machine does not know the authority that signed the certificate of the server, or of a proxy that decrypts:"
    " name a file with the authority's certificate in STKAI_HTTP_VERIFY or SSL_CERT_FILE, or pass it as verify= to"
    " HttpConfig or to a wire of your own"
)

_NOT_STRICT: Final = frozenset(range(80, 94))
"""OpenSSL's X509_V_ERR_* codes for certificates that only `ssl.VERIFY_X509_STRICT` rejects, as Python 3.13 does."""

_BREAKS_RULES: Final = (
    "since Python 3.13, the certificates of a server and of its authority must follow RFC 5280, and these do not: get"
    " new ones or, until then, clear ssl.VERIFY_X509_STRICT in the verify_flags of an SSL context, and pass"
    " httpx.HTTPTransport(verify=context) as transport= to the client and to its token provider"
)

_PARSERS: Final = frozenset({"h11", "h2", "hpack", "hyperframe", "aiohttp"})
"""The packages whose errors mean that an answer cannot be parsed or, if they contain a part of `_BREAKS`, broke off."""

_STREAM_ERRORS: Final = frozenset({"StreamClosedError", "NoSuchStreamError", "TooManyStreamsError"})
_CONNECTION_CLOSED: Final = "ConnectionState.CLOSED"
"""h2's errors for a stream that is closed or that the server has no room for, and its words for a closed connection."""

_SHOULD_RETRY: Final = b"x-should-retry"
"""The header in which OpenAI and Anthropic say "false" if another attempt would fail as well, such as for a quota that
is used up for good. Their "true" adds no retry: the policy decides which statuses are safe to repeat."""

_BREAKS: Final = ("closed connection", "disconnected", "ConnectionTerminated")


class Failure(NamedTuple):
    """An attempt that may be worth a retry: what went wrong, and what the server said about when to retry."""

    cause: str  # For people to read.
    acted: bool  # Whether the server may have acted on the request.
    requested_wait: float | None = None  # Seconds that we were asked to wait.
    needed: float = 0.0  # Seconds until the request's turn; retrying earlier would not help.
    paced: bool = False  # Whether a limiter handles the wait and decides how long it is.


def failure_of_error(error: BaseException, now: datetime, *, sound_wire: bool) -> Failure | None:
    """Classify an error for a retry; None if it is final. See `RetryPolicy.failure_of`."""
    cause = visible(describe(error))
    if isinstance(error, ServerSideRateLimitError):
        headers = as_httpx(error.response).headers
        if forbids_retry(headers):
            return None
        return Failure(cause, acted=False, requested_wait=retry_after(headers, now))
    # Our own limiter knows best, and a caller who limits the wait wants to get this error.
    if isinstance(error, ClientSideRateLimitError | DeadlineExceededError) or _is_permanent(error):
        return None
    if isinstance(error, RetryableError) or is_unsent(error, sound_wire=sound_wire):
        return Failure(cause, acted=False)
    is_transient = isinstance(error, alike(*TRANSIENT)) or _breaks_http2(error) or is_unreadable(error)
    return Failure(cause, acted=True) if is_transient else None


def is_unsent(error: BaseException | None, *, sound_wire: bool) -> bool:
    """Whether an error proves that nothing was sent; other people's wires may raise a ConnectError after sending."""
    return isinstance(error, alike(*(CONNECT_ERRORS if sound_wire else ()), httpx.PoolTimeout))


def forbids_retry(headers: httpx.Headers) -> bool:
    """Whether the server says that another attempt would fail as well."""
    if not has_field(headers, _SHOULD_RETRY):
        return False
    return headers[_SHOULD_RETRY.decode()].strip().lower() == "false"


def _is_permanent(error: BaseException) -> bool:
    """Whether a retry would fail in the same way.

    The cause is a bad certificate on either side, credentials that a proxy rejects, a host or port that does not exist
    or is invalid, or HTTP on a TLS port or the reverse.
    """
    if isinstance(error, alike(httpx.ProxyError)):
        return re.match(_PROXY_REFUSES, str(error), re.IGNORECASE) is not None
    if isinstance(error, alike(httpx.RemoteProtocolError)):
        return _TLS_ALERT in str(error)
    for below in causes(error):
        if isinstance(below, socket.gaierror):
            return below.errno != socket.EAI_AGAIN
        if isinstance(below, ssl.SSLCertVerificationError | UnicodeError | OverflowError):
            return True
        # aiohttp's SSL errors are among them; they have no reason of their own, but their cause has.
        if isinstance(below, ssl.SSLError) and (reason := getattr(below, "reason", None)) is not None:
            return reason in _NO_TLS or re.search(_NO_CLIENT_CERTIFICATE, reason) is not None
    return False


def advice_on(error: BaseException) -> str:
    """What the user can do about an error; empty if there is no general advice."""
    codes = {getattr(below, "verify_code", None) for below in causes(error)}
    return _NO_AUTHORITY if codes & _UNTRUSTED else _BREAKS_RULES if codes & _NOT_STRICT else ""


def _breaks_http2(error: BaseException) -> bool:
    """Whether an HTTP/2 connection, or its stream, was closed in the middle of a request, or has no room for one more.

    After a GOAWAY, h2 refuses what still arrives, and what others send: httpcore reports that as a local protocol
    error.
    """
    return any(
        type(reason).__name__ in _STREAM_ERRORS or _CONNECTION_CLOSED in str(reason)
        for reason in _errors_of_h2(error)
    )


def _errors_of_h2(error: BaseException) -> list[BaseException]:
    """h2's errors inside a local protocol error: httpcore also reports the server's mistakes as one."""
    if not isinstance(error, alike(httpx.LocalProtocolError)):
        return []
    reasons = [reason for below in causes(error) for reason in below.args]
    return [reason for reason in reasons if type(reason).__module__.startswith("h2.")]


def is_unanswered(error: BaseException) -> bool:
    """Whether the server is probably working on the request, or has done so: a read timeout, or an unreadable answer.

    httpx-curl-cffi raises httpx's base class of all timeouts where httpx itself raises ReadTimeout.
    """
    others = alike(httpx.ConnectTimeout, httpx.WriteTimeout, httpx.PoolTimeout)
    is_timeout = isinstance(error, alike(httpx.TimeoutException)) and not isinstance(error, others)
    return is_timeout or is_unreadable(error)


def is_unreadable(error: BaseException) -> bool:
    """Whether an answer arrived that cannot be parsed as HTTP."""
    if found := _errors_of_h2(error):
        # Errors from h2's `receive_data` are about the answer, all others about the request.
        frames = [frame for reason in found for frame, _ in walk_tb(reason.__traceback__)]
        return any(frame.f_code.co_name == "receive_data" for frame in frames) and not _breaks_http2(error)
    if not isinstance(error, alike(httpx.RemoteProtocolError)) or any(part in str(error) for part in _BREAKS):
        return False
    return any(type(below).__module__.partition(".")[0] in _PARSERS for below in causes(error))
