"""Servers that send exactly what a test says: bytes, or frames of HTTP/2."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import h2.config
import h2.connection

from ..support.listening import listening
from ..support.servers import CERTIFICATE, KEY

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
ENDLESS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n"
"""The head and some chunks; the end never comes."""

Answer = Callable[[int], tuple[bytes, bool]]
"""What to answer to the request with that number, and whether to keep the connection."""


class RawServer:
    """Answers each request with given bytes.

    Attributes:
        url: where it listens.
        answer: by default, a complete answer on a connection that stays open.
        requests: how many arrived.
        open: how many connections are open.
        connections: how many there have been.
    """

    def __init__(self) -> None:
        self.url = ""
        self.answer: Answer = lambda _: (WHOLE, True)
        self.requests = self.open = self.connections = 0
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []

    def serve(self, client: socket.socket) -> None:
        with self._lock:
            self._sockets.append(client)
            self.open += 1
            self.connections += 1
        try:
            self._talk(client)
        finally:
            client.close()
            with self._lock:
                self.open -= 1

    def _talk(self, client: socket.socket) -> None:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                more = client.recv(65536)
                if not more:
                    return
                data += more
            data = data.partition(b"\r\n\r\n")[2]
            with self._lock:
                self.requests += 1
                number = self.requests
            said, stays = self.answer(number)
            client.sendall(said)
            if not stays:
                return

    def hang_up(self) -> None:
        """Close all connections."""
        for client in self._sockets:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


@contextmanager
def raw_server(path: str | None = None) -> Iterator[RawServer]:
    """Serve on loopback, or on a Unix socket."""
    server = RawServer()
    with listening(server.serve, path) as port:
        server.url = f"http://127.0.0.1:{port}/"
        yield server


class Http2Server:
    """An HTTP/2 server over TLS.

    Attributes:
        connections: how many there have been.
        open: how many are open.
    """

    def __init__(self) -> None:
        self.connections = self.open = 0

    def serve(self, client: socket.socket) -> None:
        self.connections += 1
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE, KEY)
        context.set_alpn_protocols(["h2"])
        with suppress(OSError), context.wrap_socket(client, server_side=True) as secure:
            self.open += 1
            try:
                connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
                connection.initiate_connection()
                self.talk(secure, connection)
            finally:
                self.open -= 1

    def talk(self, secure: ssl.SSLSocket, connection: h2.connection.H2Connection) -> None:
        raise NotImplementedError
