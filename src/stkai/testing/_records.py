"""What the server received: one frozen record per request, in order of arrival."""

import threading
from dataclasses import dataclass, replace
from itertools import count
from weakref import WeakKeyDictionary


@dataclass(frozen=True, kw_only=True)
class RequestRecord:
    """One request as the server saw it.

    Attributes:
        time: When its last byte arrived, in seconds of the server's clock.
        method: GET, POST and so on.
        path: without the query.
        query: as sent, without the question mark.
        headers: names in lower case, values as sent; a name may come twice.
        body: the bytes.
        connection: The number of its TCP connection, from 1; the same number means keep-alive.
        status: The status of the answer; None before it, or if the connection was reset.
    """

    time: float
    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    connection: int
    status: int | None = None

    def header(self, name: str) -> str | None:
        """The first value of a header; None if it was not sent."""
        return next((value for key, value in self.headers if key == name.lower()), None)

    @property
    def authorization(self) -> str | None:
        """The value of the `Authorization` header."""
        return self.header("authorization")


class RequestLog:
    """The records: written by the server's thread, readable from any."""

    def __init__(self, keep: int | None) -> None:
        self._lock = threading.Lock()
        self._keep = keep
        self._records: dict[int, RequestRecord] = {}
        self._arrivals = 0
        self._numbers = count(1)
        self._connections: WeakKeyDictionary[object, int] = WeakKeyDictionary()

    def connection_number(self, connection: object) -> int:
        """The number of a connection, constant while it is open."""
        if connection not in self._connections:
            self._connections[connection] = next(self._numbers)
        return self._connections[connection]

    def arrived(self, record: RequestRecord) -> int:
        """Keep a record; returns its number, for `answered`."""
        with self._lock:
            self._arrivals += 1
            self._records[self._arrivals] = record
            if self._keep is not None and len(self._records) > self._keep:
                del self._records[next(iter(self._records))]
            return self._arrivals

    def answered(self, number: int, status: int) -> None:
        """Note the answer to a request, if its record is still kept."""
        with self._lock:
            if record := self._records.get(number):
                self._records[number] = replace(record, status=status)

    def clear(self) -> None:
        """Forget all records."""
        with self._lock:
            self._records.clear()

    def __call__(self) -> list[RequestRecord]:
        with self._lock:
            return list(self._records.values())
