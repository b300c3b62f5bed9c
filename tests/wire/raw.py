"""A server that sends exactly the given bytes, and closes when told to."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

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

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.url = ""
        if listener.family == socket.AF_INET:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        self.answer: Answer = lambda _: (WHOLE, True)
        self.requests = self.open = self.connections = 0
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self.open += 1
        with client, suppress(OSError):
            client.settimeout(30)
            self._talk(client)
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

    def stop(self) -> None:
        """Stop listening, and close all connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()


@contextmanager
def raw_server(path: str | None = None) -> Iterator[RawServer]:
    """Serve on loopback, or on a Unix socket."""
    listener = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
    listener.bind(("127.0.0.1", 0) if path is None else path)
    listener.listen(512)
    server = RawServer(listener)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
