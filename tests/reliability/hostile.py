"""A server on loopback that sends, byte by byte, whatever a test wants."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..support.listening import listening

Talk = Callable[[socket.socket, threading.Event], object]
"""Called after one request has been read: writes to the socket until the event is set; then the connection closes."""


@contextmanager
def hostile(talk: Talk) -> Iterator[str]:
    """The URL of the server; `talk` runs once for each request, one request for each connection."""
    stopped = threading.Event()

    def serve(connection: socket.socket) -> None:
        if read_request(connection):
            talk(connection, stopped)

    with listening(serve, ending=stopped.set) as port:
        yield f"http://127.0.0.1:{port}/"


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
