"""An application for gunicorn that builds and uses its transport before the workers are forked."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

import stkai
from stkai.transports import limiter

_place = Path(os.environ["STKAI_DRILL"])
_bucket = stkai.TokenBucket(
    float(os.environ["STKAI_DRILL_RATE"]), 1, burst=1, share="drill", store=f"file://{_place / 'store'}"
)


def _note(request: httpx.Request) -> httpx.Response:
    """Write down when the request was granted, and by which process."""
    with (_place / f"{os.getpid()}.grants").open("a") as file:
        file.write(f"{time.monotonic()}\n")
    return httpx.Response(200)


_transport = stkai.StackBuilder([limiter(_bucket)], listener=[]).build(httpx.MockTransport(_note))
_transport.handle_request(httpx.Request("POST", "http://quota.test/"))


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Send one request through the shared quota; answer with the process, and the members that it sees."""
    _transport.handle_request(httpx.Request("POST", "http://quota.test/"))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {_bucket.members}".encode()]
