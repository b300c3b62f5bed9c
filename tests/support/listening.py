"""Listens on loopback, and serves each connection in a thread."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Serve = Callable[[socket.socket], object]


@contextmanager
def listening(
    serve: Serve, path: str | None = None, *, ending: Callable[[], object] = lambda: None
) -> Iterator[int]:
    """Call `serve` for each connection, and then close it; yields the port. At the end, all threads have ended.

    Args:
        serve: what it raises of the network is ignored.
        path: of a Unix socket, which has no port.
        ending: called at the end, before the connections that are still open are shut down.
    """
    served: list[tuple[threading.Thread, socket.socket]] = []

    def talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(30)
            serve(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                served.append((threading.Thread(target=talk, args=(connection,), daemon=True), connection))
                served[-1][0].start()

    with socket.socket(socket.AF_INET if path is None else socket.AF_UNIX) as listener:
        listener.bind(("127.0.0.1", 0) if path is None else path)
        listener.listen(512)
        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        try:
            yield listener.getsockname()[1] if path is None else 0
        finally:
            ending()
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for thread, connection in served:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                thread.join(30)


def speaks_plain_http(connection: socket.socket) -> None:
    """Whatever the client greets with."""
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def pump(source: socket.socket, sink: socket.socket, how: int = socket.SHUT_WR) -> None:
    """Pass on everything that arrives, and then shut down the sink."""
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(how)
