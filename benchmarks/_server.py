"""A server on loopback, in its own process. It does as little as possible, since the clients are being measured.

It understands only what the clients of these benchmarks send: HTTP/1.1 with keep-alive and a `Content-Length`.
`GET /connections` returns how many connections have been opened since it started, including this one.
"""

import asyncio
import contextlib
import multiprocessing
import ssl
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

BODY = b'{"execution_id": "01JABCDEFGHJKMNPQRSTVWXYZ0", "status": "COMPLETED", "result": "%s"}' % (b"x" * 400)
HEADERS = [
    (b"Date", b"Tue, 25 Nov 2025 08:00:00 GMT"),
    (b"Content-Type", b"application/json"),
    (b"Content-Length", b"%d" % len(BODY)),
    (b"X-Request-Id", b"7a1c9e54-33f6-4f0e-9a2f-5d1f8f1e6b10"),
    (b"Strict-Transport-Security", b"max-age=31536000; includeSubDomains"),
    (b"Cache-Control", b"no-store"),
]
_ANSWER = b"HTTP/1.1 200 OK\r\n" + b"".join(b"%s: %s\r\n" % header for header in HEADERS) + b"\r\n" + BODY
_COUNT = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\n%09d"


class _Answers(asyncio.Protocol):
    """One connection; `delay` seconds pass before each answer."""

    opened = 0

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        _Answers.opened += 1
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        _, named, rest = head.lower().partition(b"\r\ncontent-length: ")
        length = int(rest.split(b"\r\n", 1)[0]) if named else 0
        if len(body) < length:
            return
        self._buffer = b""
        if head.startswith(b"GET /connections"):
            self._write(_COUNT % _Answers.opened)
        elif self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._write, _ANSWER)
        else:
            self._write(_ANSWER)

    def _write(self, answer: bytes) -> None:
        if self._transport is not None:
            self._transport.write(answer)


def _run(ready: Connection, delay: float, certificate: bytes | None) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(
            lambda: _Answers(delay), "127.0.0.1", 0, ssl=_tls(certificate), backlog=1024
        )
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


def _tls(certificate: bytes | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(certificate)
        file.flush()
        context.load_cert_chain(file.name)
    return context


@contextlib.contextmanager
def serving(*, delay: float = 0.0, certificate: bytes | None = None) -> Iterator[str]:
    """The URL of a server that runs until the block ends.

    Args:
        delay: seconds between a request and its answer.
        certificate: PEM of a key and its chain; with it the server speaks TLS.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_run, args=(theirs, delay, certificate), daemon=True)
    process.start()
    try:
        if not ours.poll(30):
            raise RuntimeError("the benchmark server did not start within 30 s")
        yield f"{'http' if certificate is None else 'https'}://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


@contextlib.contextmanager
def own_authority() -> Iterator[tuple[bytes, Path]]:
    """A certificate for 127.0.0.1, and the file of the authority that its clients must trust."""
    import trustme

    authority = trustme.CA()
    with authority.cert_pem.tempfile() as trusted:
        yield (
            authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.bytes(),
            Path(trusted),
        )
