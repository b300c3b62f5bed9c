"""A wire that sends through StackSpot CLI, which is logged in and signs the requests itself.

The CLI answers with a `requests.Response`, which is turned into a real `httpx.Response`: the status, all headers, and
the body, streamed as it arrives and decoded exactly once.
"""

import importlib
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import httpx

from .._errors import AuthenticationError, ConfigurationError, describe
from .._families import Family, adopt, as_httpx, family_of, httpx_errors, of_family
from ._call import ATTEMPT, Attempt

if TYPE_CHECKING:
    import requests

_CHUNK: Final = 16_384

_CODINGS: Final = frozenset({"gzip", "deflate", "identity"})
"""The content codings that both requests and httpx support, whatever is installed."""

_OWN_HEADERS: Final = frozenset(
    {"authorization", "connection", "content-length", "content-type", "host", "transfer-encoding"}
)
"""The headers that the CLI and requests set themselves."""


def _find_cli() -> Any:
    """The CLI's HTTP module, or None. Another package named `oscli` lacks these functions and does not count."""
    try:
        module = importlib.import_module("oscli.core.http")
    except (Exception, SystemExit):  # noqa: BLE001 - another package may do anything when it is imported
        return None
    names = ("get_with_authorization", "post_with_authorization")
    return module if all(callable(getattr(module, name, None)) for name in names) else None


def cli_is_available() -> bool:
    """Whether StackSpot CLI can be used from this Python."""
    return _find_cli() is not None


class StkCLITransport(httpx.BaseTransport):
    """Sends GET, and POST with a JSON body or none, through StackSpot CLI.

    Raises:
        ConfigurationError: StackSpot CLI cannot be imported.
    """

    family = None

    def __init__(self) -> None:
        self._cli = _find_cli()
        if self._cli is None:
            raise ConfigurationError(
                "StackSpot CLI is not available in this Python (there is no oscli.core.http with its functions):"
                " install StackSpot CLI from its own site and run: stk login; or use client credentials"
            )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request.

        Raises:
            httpx.UnsupportedProtocol: the CLI cannot send the request (another method, or a body that is not JSON).
            AuthenticationError: the CLI gave up, probably because no user is logged in.
            httpx.TransportError: the request failed, as with any other wire.
        """
        try:
            return self._send(request, family_of(request))
        except httpx.RequestError as error:
            adopt(error, request)
            raise

    def _send(self, request: httpx.Request, family: Family) -> httpx.Response:
        arguments: dict[str, Any] = {
            "url": str(request.url),
            "timeout": request.extensions.get("timeout", {}).get("read"),
            "headers": _headers_of(request),
        }
        if request.method == "GET":
            function, arguments["use_cache"] = self._cli.get_with_authorization, False
        elif request.method == "POST":
            function, arguments["body"] = self._cli.post_with_authorization, _json_of(request)
            attempt = request.extensions.get(ATTEMPT)
            if not isinstance(attempt, Attempt) or not attempt.buffered:
                arguments["stream"] = True
        else:
            raise httpx.UnsupportedProtocol(f"StackSpot CLI sends GET and POST only, not {request.method}")
        try:
            with httpx_errors(family):
                return _convert(function(**arguments), family)
        except httpx.RequestError:
            raise
        except (Exception, SystemExit) as error:  # The CLI is a command-line program and may exit.
            msg = f"StackSpot CLI did not send the request ({describe(error)}); try: stk login"
            raise AuthenticationError(msg, error) from error

    def __repr__(self) -> str:
        return "StkCLITransport()"


def _headers_of(request: httpx.Request) -> dict[str, str]:
    headers = {name: value for name, value in request.headers.items() if name not in _OWN_HEADERS}
    asked = [coding.strip() for coding in headers.get("accept-encoding", "").split(",")]
    headers["accept-encoding"] = ", ".join(coding for coding in asked if coding in _CODINGS) or "identity"
    return headers


def _json_of(request: httpx.Request) -> Any:
    content = request.read()
    if not content:
        return None
    if "json" in request.headers.get("content-type", "application/json"):
        with suppress(ValueError):
            return json.loads(content)
    raise httpx.UnsupportedProtocol("StackSpot CLI sends JSON bodies only; pass data= or json=")


def _convert(answer: "requests.Response", family: Family) -> httpx.Response:
    import urllib3

    # A substitute in a test may lack most of what a response of requests has.
    raw, known = getattr(answer, "raw", None), as_httpx(answer)
    headers, reason = known.headers.raw, getattr(answer, "reason", "")
    if isinstance(raw, urllib3.HTTPResponse):  # It keeps repeated headers apart; requests joins them.
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in raw.headers.items()]
    make = partial(
        family.Response,
        known.status_code,
        extensions={"reason_phrase": reason.encode("latin-1", "replace") if isinstance(reason, str) else b""},
    )
    if isinstance(raw, urllib3.HTTPResponse) and not getattr(answer, "_content_consumed", False):
        return make(headers=headers, stream=of_family(_CliBody, family)(answer, family))
    # requests has already read and decoded the body.
    decoded = {b"content-encoding", b"content-length", b"transfer-encoding"}
    headers = [(name, value) for name, value in headers if name.lower() not in decoded]
    content: Any = getattr(answer, "content", b"")
    known.close()
    return make(headers=headers, content=content if isinstance(content, bytes) else b"")


class _CliBody(httpx.SyncByteStream):
    """The body as it arrives, still in its content coding: httpx decodes it."""

    def __init__(self, answer: "requests.Response", family: Family) -> None:
        self._answer = answer
        self._family = family

    def __iter__(self) -> Iterator[bytes]:
        raw = self._answer.raw
        with httpx_errors(self._family):
            if not hasattr(raw, "read1"):  # urllib3 1
                yield from raw.stream(_CHUNK if raw.chunked else 1, decode_content=False)
                return
            # `read1` returns what has arrived; `read` would wait for a full chunk and hold back server-sent events.
            while chunk := raw.read1(_CHUNK, decode_content=False):
                yield chunk

    def close(self) -> None:
        self._answer.close()
