"""A wire that sends through StackSpot CLI, which is logged in and signs the requests itself.

The CLI answers with `requests.Response`; this turns it into a true `httpx.Response`: the status, all headers, and the
body streamed as it comes, decoded exactly once.
"""

import importlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import httpx

from .._errors import ConfigurationError
from ._base import CALL

if TYPE_CHECKING:
    import requests

_CHUNK: Final = 16_384
_OWN_HEADERS: Final = frozenset(
    {
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
    }
)
"""What the CLI and requests set themselves."""


def _find_cli() -> Any:
    """The CLI's HTTP module, or None. Another package of the name `oscli` lacks the functions and does not count."""
    try:
        module = importlib.import_module("oscli.core.http")
    except Exception:  # noqa: BLE001 - whatever a foreign package raises on import, it is not StackSpot CLI
        return None
    names = ("get_with_authorization", "post_with_authorization")
    return module if all(callable(getattr(module, name, None)) for name in names) else None


def cli_is_available() -> bool:
    """Whether StackSpot CLI can be used from this Python."""
    return _find_cli() is not None


class StkCLITransport(httpx.BaseTransport):
    """Sends GET, and POST with a JSON body or none, through StackSpot CLI.

    Raises:
        ConfigurationError: StackSpot CLI cannot be imported here.
    """

    def __init__(self) -> None:
        self._cli = _find_cli()
        if self._cli is None:
            msg = (
                "StackSpot CLI is not available in this Python (there is no oscli.core.http with its functions):"
                " install StackSpot CLI from its own site and run: stk login; or use client credentials"
            )
            raise ConfigurationError(msg)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request.

        Raises:
            httpx.UnsupportedProtocol: the CLI cannot send it (another method, or a body that is not JSON).
            httpx.TransportError: as any other wire would.
        """
        headers = {name: value for name, value in request.headers.items() if name not in _OWN_HEADERS}
        timeout = request.extensions.get("timeout", {}).get("read")
        with _as_httpx_errors():
            if request.method == "GET":
                answer = self._cli.get_with_authorization(
                    url=str(request.url), timeout=timeout, headers=headers, use_cache=False
                )
            elif request.method == "POST":
                call = request.extensions.get(CALL)
                options = {} if call is not None and call.buffered else {"stream": True}
                answer = self._cli.post_with_authorization(
                    url=str(request.url), body=_json_of(request), timeout=timeout, headers=headers, **options
                )
            else:
                msg = f"StackSpot CLI sends GET and POST only, not {request.method}"
                raise httpx.UnsupportedProtocol(msg)
        return _convert(answer)

    def __repr__(self) -> str:
        return "StkCLITransport()"


def _json_of(request: httpx.Request) -> Any:
    content = request.read()
    if not content:
        return None
    try:
        return json.loads(content)
    except ValueError:
        msg = "StackSpot CLI sends JSON bodies only; pass data= or json="
        raise httpx.UnsupportedProtocol(msg) from None


def _convert(answer: "requests.Response") -> httpx.Response:
    raw = answer.raw
    headers = list((answer.headers if raw is None else raw.headers).items())
    if raw is None or getattr(answer, "_content_consumed", False):
        # requests has read and decoded it already.
        decoded = {"content-encoding", "content-length", "transfer-encoding"}
        kept = [(name, value) for name, value in headers if name.lower() not in decoded]
        content = answer.content
        answer.close()
        return httpx.Response(answer.status_code, headers=kept, content=content)
    extensions = {"reason_phrase": (answer.reason or "").encode("latin-1", "replace")}
    return httpx.Response(
        answer.status_code, headers=headers, stream=_RawStream(answer), extensions=extensions
    )


class _RawStream(httpx.SyncByteStream):
    """The body as it arrives, in its content coding: httpx decodes it."""

    def __init__(self, answer: "requests.Response") -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx_errors():
            raw = self._answer.raw
            # read1 gives what is there; read would wait for a full chunk, and hold back server-sent events.
            while chunk := raw.read1(_CHUNK, decode_content=False) if hasattr(raw, "read1") else raw.read(1):
                yield chunk

    def close(self) -> None:
        self._answer.close()


class _as_httpx_errors:  # noqa: N801 - reads as a function
    """Turns what requests and urllib3 raise into what httpx would have raised."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        name = _httpx_name(error)
        if name is not None:
            raise getattr(httpx, name)(str(error)) from error


def _httpx_name(error: BaseException) -> str | None:
    import requests.exceptions as theirs
    import urllib3.exceptions as below

    names: list[tuple[type[BaseException] | tuple[type[BaseException], ...], str]] = [
        (theirs.ConnectTimeout, "ConnectTimeout"),
        ((theirs.Timeout, below.ReadTimeoutError), "ReadTimeout"),
        (theirs.ProxyError, "ProxyError"),
        (theirs.SSLError, "ConnectError"),
        ((theirs.ChunkedEncodingError, below.ProtocolError), "RemoteProtocolError"),
        (theirs.ConnectionError, "ConnectError" if _never_connected(error) else "ReadError"),
        ((theirs.ContentDecodingError, below.DecodeError), "DecodingError"),
        (theirs.TooManyRedirects, "TooManyRedirects"),
        ((theirs.MissingSchema, theirs.InvalidSchema, theirs.InvalidURL), "UnsupportedProtocol"),
        ((theirs.RequestException, below.HTTPError), "TransportError"),
    ]
    return next((name for kinds, name in names if isinstance(error, kinds)), None)


def _never_connected(error: BaseException) -> bool:
    """Whether the connection could not be opened: then nothing was sent."""
    from urllib3.exceptions import NewConnectionError

    inner = error.args[0] if error.args else None
    return isinstance(getattr(inner, "reason", inner), NewConnectionError)
