"""What other libraries do with a quota, a lost store and a failing server: `python -m benchmarks.peers`.

Needs `redis-server`. Counts, not seconds; each library has its default settings and a process of its own.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.redis_servers import Server

from benchmarks._harness import Table, run, versions
from benchmarks._peer import NEEDS, Peer, available

RATE = 100
"""Permits per second that the limiters with a store in Redis are told."""

PROCESSES = 4
STORED = ("stkai", "token-throttle", "throttled-py", "pyrate-limiter")
CLIENTS = {
    "stkai": "stkai",
    "stkai, `retry_unknown=False`": "stkai",
    "stkai, a retry budget": "stkai",
    "httpx-retries": "httpx-retries",
    "clientwright": "clientwright",
    "headgate": "headgate",
}
KINDS = {"stkai, `retry_unknown=False`": "careful", "stkai, a retry budget": "budget"}


def measure(quick: bool) -> Sequence[Table]:
    """What stkai and other libraries do at a quota, in an outage of the store, and at a failing server."""
    return [processes(quick), one_process(quick), clients(quick)]


def processes(quick: bool) -> Table:
    """Four processes that share one quota in Redis."""
    rows = []
    found = available(STORED)
    for library, python in found.items():
        most, commands = _share(python, library, 4 if quick else 10)
        kept, kills, of = _kills(python, library, 4 if quick else 16)
        during, later, errors = _outage(python, library)
        lost = f"{during:,} / {later:,}"
        rows.append(
            [_bold(library), str(most), f"{commands:.2f}", f"{kept:,} of {of:,}", lost, f"{errors:,}"]
        )
    columns = [
        "",
        "most permits in any second",
        "commands to Redis per permit",
        f"permits during {kills} kills" if found else "permits during kills",
        "permits while Redis is gone (300) / in 5 s afterwards (500)",
        "errors",
    ]
    note = (
        f"{PROCESSES} processes with 8 callers each are told {RATE} permits per second. Kills: one process each 0.5 s, "
        f"replaced at once. Redis is stopped for 3 s, and empty afterwards. {_taking(found)}."
    )
    return Table("peers-processes", "One quota in Redis, four processes", columns, rows, [note])


def one_process(quick: bool) -> Table:
    """Limiters in the memory of one process."""
    rows = []
    lasts = 4 if quick else 8
    found = available([*STORED, "aiolimiter"])
    for library, python in found.items():
        with Peer(library, python) as peer, tempfile.TemporaryDirectory() as place:
            file = Path(place) / "grants"
            options = {"limit": RATE, "seconds": 2, "store": "", "callers": 50, "lasts": 2.2, "at": 0.0}
            peer.ask("grants", file=str(file), **options)
            times = _times(file)
            first = sum(instant < times[0] + 2 for instant in times)
            taken, steady = peer.ask("crowds", limit=50, lasts=lasts)
            place_of_large = f"{peer.ask('place')} of 61"
            rows.append([_bold(library), str(first), f"{taken} ({steady})", place_of_large])
    columns = [
        "",
        f"permits in the first window of {RATE}",
        f"permits of {50 * lasts} while crowds are cancelled (of the steady callers)",
        "place of a large call",
    ]
    note = (
        f"Crowds: 50 per second for {lasts} s; 100 callers wait and are cancelled after 0.05 s, again and again, "
        f"beside four steady ones. Large call: it waits, and then 60 small ones come. {_taking(found)}."
    )
    return Table("peers-memory", "Limiters in one process", columns, rows, [note])


def clients(quick: bool) -> Table:
    """Clients that retry."""
    count = 50 if quick else 150
    rows = []
    found = available(list(dict.fromkeys(CLIENTS.values())))
    for label, library in CLIENTS.items():
        if library not in found:
            continue
        ask, kind = partial(_ask, library, found[library]), KINDS.get(label, "")
        quota = "-"  # Other kinds of retries change nothing here.
        if not kind:
            answers, statuses = ask(_quota(20, 2.0), kind="adaptive", count=count)
            quota = f"{answers.count('200')} / {statuses.count(429)}"
        _, dropped = ask(lambda _: None, kind=kind, count=1, method="POST")
        answers, _ = ask(lambda number: 503 if number < 5 else 200, kind=kind, count=10, pause=0.3)
        well = answers[5:].count("200")
        _, down = ask(lambda _: 503, kind=kind, count=100)
        rows.append(
            [label.replace("stkai", "**stkai**"), quota, str(len(dropped)), str(well), str(len(down))]
        )
    columns = [
        "",
        f"unknown quota, {count} callers: answered / refusals",
        "requests for one POST whose connection drops",
        "of 5 calls to a server that is well again",
        "requests for 100 GETs to a server that is down",
    ]
    note = (
        "Unknown quota: 20 per 2 s, without `Retry-After`; stkai has an adaptive limiter, and none elsewhere. "
        f"Well again: after 5 calls that ended in a 503, one call each 0.3 s. {_taking(found)}."
    )
    return Table("peers-clients", "Clients at a failing server", columns, rows, [note])


def _ask(
    library: str, python: str, reply: Callable[[int], int | None], **options: object
) -> tuple[list[str], list[int | None]]:
    """What calls ended in, and how their requests were answered; in a new process, which remembers no failure."""
    with Peer(library, python) as peer, serving(reply) as server:
        return peer.ask("calls", url=f"http://127.0.0.1:{server.server_port}", **options), server.statuses


def most_in(times: Sequence[float], seconds: float) -> int:
    """The most of these sorted times in any span of that many seconds."""
    most = first = 0
    for place, instant in enumerate(times):
        while times[first] <= instant - seconds:
            first += 1
        most = max(most, place - first + 1)
    return most


class Service(ThreadingHTTPServer):
    """A server that answers the call of a number as it is told: with a status, or by dropping the connection."""

    request_queue_size = 512
    daemon_threads = True

    def __init__(self, reply: Callable[[int], int | None]) -> None:
        self.reply, self.lock = reply, threading.Lock()
        self.statuses: list[int | None] = []
        super().__init__(("127.0.0.1", 0), _Answers)


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            status = self.server.reply(int(self.path[1:]))
            self.server.statuses.append(status)
        if status is None:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing: the service counts."""


@contextmanager
def serving(reply: Callable[[int], int | None]) -> Iterator[Service]:
    """The service, on a free port of this machine."""
    with Service(reply) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def _quota(most: int, seconds: float) -> Callable[[int], int]:
    begins, count = float("-inf"), 0

    def reply(_: int) -> int:
        nonlocal begins, count
        now = time.monotonic()
        if now - begins >= seconds:
            begins, count = now, 0
        count += 1
        return 200 if count <= most else 429

    return reply


@contextmanager
def _members(
    python: str, library: str
) -> Iterator[tuple[Server, Callable[[float, float], tuple[Peer, Path]]]]:
    """A new Redis, and a function that starts a process, which takes permits from an instant on for so many seconds."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(Server("redis", place / "redis"))
        number = 0

        def start(at: float, lasts: float) -> tuple[Peer, Path]:
            nonlocal number
            number += 1
            peer, file = stack.enter_context(Peer(library, python)), place / f"{number}.grants"
            options = {
                "limit": RATE,
                "seconds": 1,
                "store": server.url,
                "callers": 8,
                "lasts": lasts,
                "at": at,
            }
            peer.send("grants", file=str(file), **options)
            return peer, file

        yield server, start


def _share(python: str, library: str, lasts: float) -> tuple[int, float]:
    """The most permits in any second, and commands to Redis per permit; a script is one command."""
    seen: list[float] = []
    with _members(python, library) as (server, start), server.client() as client, client.monitor() as monitor:

        def listen() -> None:
            with suppress(Exception):  # The connection is closed under it at the end.
                seen.extend(line["time"] for line in monitor.listen() if line["client_type"] != "lua")

        at = time.time() + 5
        members = [start(at, lasts) for _ in range(PROCESSES)]
        threading.Thread(target=listen, daemon=True).start()
        for peer, _ in members:
            peer.answer()
        times = sorted(instant for _, file in members for instant in _times(file))
        commands = sum(at <= instant <= at + lasts for instant in list(seen))
    return most_in(times, 1.0), commands / max(1, len(times))


def _kills(python: str, library: str, kills: int) -> tuple[int, int, int]:
    """Permits while one process after the other is killed and replaced, the kills, and what the limit allows."""
    with _members(python, library) as (_, start):
        at, lasts = time.time() + 6, kills * 0.5 + 2
        working = [start(at, 60.0) for _ in range(PROCESSES)]
        # Those that take the place of the killed are ready before: an interpreter needs longer than half a second.
        ready = [start(at + 1 + number * 0.5, 60.0) for number in range(kills)]
        files = [file for _, file in working + ready]
        time.sleep(max(0.0, at + 1 - time.time()))
        for _ in range(kills):
            working.pop(0)[0].process.kill()
            working.append(ready.pop(0))
            time.sleep(0.5)
        time.sleep(max(0.0, at + 1.1 + lasts - time.time()))
        times = [instant for file in files for instant in _times(file)]
        return sum(at + 1 <= instant < at + 1 + lasts for instant in times), kills, round(RATE * lasts)


def _outage(python: str, library: str) -> tuple[int, int, int]:
    """Permits in the 3 s without Redis, in the last 5 s of the 14 s, and errors that reached callers."""
    with _members(python, library) as (server, start):
        at = time.time() + 5
        members = [start(at, 14.0) for _ in range(PROCESSES)]
        time.sleep(max(0.0, at + 4 - time.time()))
        server.kill()
        gone = time.time()
        time.sleep(max(0.0, at + 7 - time.time()))
        server.start()
        errors = sum(sum(peer.answer().values()) for peer, _ in members)
        times = [instant for _, file in members for instant in _times(file)]
    return sum(gone <= x < gone + 3 for x in times), sum(at + 9 <= x < at + 14 for x in times), errors


def _times(file: Path) -> list[float]:
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return sorted(float(line) for line in lines if line.endswith("\n"))  # A kill may cut the last one short.


def _bold(library: str) -> str:
    return f"**{library}**" if library == "stkai" else library


def _taking(found: dict[str, str]) -> str:
    others = [NEEDS[library][0].replace("==", " ") for library in found if NEEDS[library]]
    return ", ".join([versions("stkai"), *others])


if __name__ == "__main__":
    run(measure)
