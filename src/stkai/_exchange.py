"""One request of a client and its answer: checks arguments, builds a complete request, returns a complete response."""

import json
import math
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any, Final, Self

import httpx

from ._checks import POSITIVE_SECONDS, check_number
from ._errors import DeadlineExceededError, InvalidArgumentError, ServerSideRateLimitError
from ._families import alike
from ._headers import copy_request, headers_of
from ._urls import request_url
from .transports._bodies import is_read, set_body, timeouts
from .transports._call import ATTEMPT, Attempt, Beginning, Enter, begin
from .transports._layer_transport import LayerBase
from .transports._operations import Close, Flow, Load, Read, Steps
from .transports._options import NO_OPTIONS, OPTIONS, CallOptions, options_of

TIMEOUT: Final = 30
"""Seconds that connecting, writing and each read may take, unless the call says otherwise."""

_LONGER: Final = "pass a longer one to the call, such as client.post(url, data, timeout=600)"

_JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class StreamedResponse(httpx.Response):
    """The response of `post_stream`: its body arrives while you iterate; close it, or use it in a `with` block.

    Its `elapsed` is the time until you get it, without the body.
    """

    is_for_caller = True  # No client reads its body first, or follows it.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


def request_of(
    verb: str, url: str, data: Any, headers: Mapping[str, str] | None, timeout: float, given: CallOptions
) -> httpx.Request:
    """The complete request of a call, from the arguments of a client's method, which it checks."""
    options = options_of(verb, given) if given else NO_OPTIONS
    method = "GET" if verb == "get" else "POST"
    target = request_url(url)
    timeout = check_number("timeout", timeout, POSITIVE_SECONDS, error=InvalidArgumentError)
    extensions: dict[str, Any] = {"timeout": timeouts(timeout)}
    if options is not NO_OPTIONS:
        extensions[OPTIONS] = options
    content = _encode(data)
    request = httpx.Request(
        method,
        target,
        headers=headers_of(method, target, headers, content),
        stream=httpx.ByteStream(content or b""),
        extensions=extensions,
    )
    request.read()
    return request


def check_request(request: object) -> None:
    """Refuse what is not a request of httpx or httpx2."""
    if not isinstance(request, alike(httpx.Request)):
        raise InvalidArgumentError(f"a request must be an httpx.Request, not {request!r}")


def call_of(layer: LayerBase, request: httpx.Request) -> tuple[Beginning, Enter]:
    """The call of a caller's complete request, and its flow.

    Its extensions may hold `RequestOptions`, a timeout, and a function to carry out around the flow; see `ATTEMPT`.
    """
    check_request(request)
    if request.url.userinfo:
        request_url(request.url)
    layer.check_body(request)
    extensions = {"timeout": timeouts(TIMEOUT), **request.extensions}
    call = begin(copy_request(request, extensions=extensions), layer.context.now(), True)
    flow, around = partial(exchange, layer), request.extensions.get(ATTEMPT)
    return call, partial(around, flow) if callable(around) else flow


def exchange(layer: LayerBase, request: httpx.Request, attempt: Attempt) -> Flow:
    """The flow of a client's call: sends through the stack, which begins with `layer`, and completes the response.

    It reads the body if the caller wants all of it and no layer has read it. A 429 that a limiter has handled is raised
    as a ServerSideRateLimitError, with as much of its body as arrives in time.
    """
    try:
        response = yield from layer.flow(request, attempt)
    except Exception as error:
        _name_timeout(error, request)
        raise
    refused = response.status_code == httpx.codes.TOO_MANY_REQUESTS and attempt.last.paced
    try:
        response.request = attempt.request
        if refused:
            yield from _load_refusal(response)
        elif attempt.buffered and not is_read(response):
            yield Read(response)
            response.read()  # Under a deadline, the body has already been loaded, still encoded.
        now = layer.context.now()
        response.elapsed = timedelta(seconds=now - attempt.started)
        if refused:
            attempt.finish(response, now)
            raise ServerSideRateLimitError(response, request=attempt.request)
        if not attempt.buffered:
            response.__class__ = StreamedResponse
        return response
    except BaseException as error:
        yield Close(response)
        _name_timeout(error, request)
        raise


def _load_refusal(response: httpx.Response) -> Steps[None]:
    """Load as much of a refusal's body as arrives in time; the refusal is reported even if that cannot be read."""
    try:
        yield Load(response, math.inf, brief=True)
        response.read()
    except alike(httpx.RequestError):
        set_body(response, [])


def _name_timeout(error: BaseException, request: httpx.Request) -> None:
    """Add to a timeout's message its length in seconds, and how to extend it."""
    if isinstance(error, alike(httpx.TimeoutException)) and not isinstance(error, DeadlineExceededError):
        phase = type(error).__name__.removesuffix("Timeout").lower()
        seconds = request.extensions.get("timeout", {}).get(phase)
        if seconds is not None:
            text = f"{error}, after timeout={seconds:g} seconds".removeprefix(", ")
            if _LONGER not in str(error):  # A mock may raise the same error again and again.
                error.args = (f"{text}; {_LONGER}",)


def _encode(data: Any) -> bytes | None:
    """`data` as JSON, in httpx's compact form; None for no body."""
    if data is None:
        return None
    try:
        return _JSON.encode(data).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"data must be JSON-serializable: {error}") from error
