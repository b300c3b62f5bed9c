"""Small servers on loopback beyond the embedded one: a forward proxy, and a TLS server."""

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

CERTIFICATE = Path(__file__).parent / "tls" / "cert.pem"
KEY = CERTIFICATE.with_name("key.pem")

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@contextmanager
def serve(handler: Handler, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve in a thread; yields the origin."""
    started: Future[tuple[int, Callable[[], None]]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(handler, context, started)), daemon=True)
    thread.start()
    port, stop = started.result()
    try:
        yield f"{'http' if context is None else 'https'}://127.0.0.1:{port}"
    finally:
        stop()
        thread.join()


async def _serve(
    handler: Handler, context: ssl.SSLContext | None, started: Future[tuple[int, Callable[[], None]]]
) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.05)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        started.set_result((runner.addresses[0][1], lambda: _stop(loop, stopped)))
        await stopped.wait()
    finally:
        await runner.cleanup()


def _stop(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> None:
    loop.call_soon_threadsafe(stopped.set)


async def broken(request: web.BaseRequest) -> web.StreamResponse:
    """An answer whose body breaks off."""
    response = web.StreamResponse()
    response.content_length = 1000
    await response.prepare(request)
    await response.write(b'{"half": ')
    assert request.transport is not None
    request.transport.close()
    return response


class Proxy:
    """A real forward proxy.

    Attributes:
        asked: the methods and targets (in absolute form, or host:port) of its requests.
        hosts: their `Host` headers.
        credentials: the `Proxy-Authorization` headers.
        upstream: the origin of the server that it calls `http://upstream.example`.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.hosts: list[str] = []
        self.credentials: list[str | None] = []
        self.upstream: str | None = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append((request.method, request.raw_path))
        self.hosts.append(request.headers["Host"])
        self.credentials.append(request.headers.get("Proxy-Authorization"))
        if request.method == "CONNECT":
            return web.Response(status=403, reason="no tunnels here")
        if self.upstream is None or not request.raw_path.startswith("http://upstream.example/"):
            return web.Response(text=f"by proxy: {request.raw_path}")
        target = request.raw_path.replace("http://upstream.example", self.upstream)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, target, headers=headers, data=await request.read()) as answer,
        ):
            body = await answer.read()
            kind = {"Content-Type": answer.headers["Content-Type"]}
            return web.Response(status=answer.status, body=body, headers=kind)


@contextmanager
def proxy() -> Iterator[tuple[str, Proxy]]:
    """A proxy, by its URL."""
    log = Proxy()
    with serve(log.handle) as url:
        yield url, log


@contextmanager
def tls_server() -> Iterator[str]:
    """A server with a self-signed certificate."""

    async def hello(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="by TLS")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    with serve(hello, context) as url:
        yield url
