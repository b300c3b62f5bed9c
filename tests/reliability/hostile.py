"""A server on loopback that sends, byte by byte, whatever a test wants."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

Talk = Callable[[socket.socket, threading.Event], object]
"""Called after one request has been read: writes to the socket until the event is set; then the connection closes."""


@contextlib.contextmanager
def hostile(talk: Talk) -> Iterator[str]:
    """The URL of the server; `talk` runs once for each request, one request for each connection."""
    stopped = threading.Event()
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if read_request(connection):
                talk(connection, stopped)

    def accept() -> None:
        while not stopped.is_set():
            connection, _ = listener.accept()
            thread = threading.Thread(target=serve, args=(connection,))
            threads.append(thread)
            thread.start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        address = listener.getsockname()
        try:
            yield f"http://127.0.0.1:{address[1]}/"
        finally:
            stopped.set()
            socket.create_connection(address).close()  # wakes the thread that waits in accept()
            acceptor.join()
    for thread in threads:
        thread.join()


def drip(connection: socket.socket, stopped: threading.Event, text: bytes, every: float) -> None:
    """Send one byte at a time, with this many seconds in between."""
    for byte in text:
        if stopped.wait(every):
            return
        connection.sendall(bytes([byte]))


def read_request(connection: socket.socket) -> bool:
    """Read one request; returns whether there was a whole one."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65_536)
        if not piece:
            return False
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    _, named, rest = head.lower().partition(b"content-length: ")
    length = int(rest.split(b"\r\n")[0]) if named else 0
    while len(body) < length:
        piece = connection.recv(65_536)
        if not piece:
            return False
        body += piece
    return True
