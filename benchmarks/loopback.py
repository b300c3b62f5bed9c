"""Requests per second to a server on loopback that costs as little as possible: `python -m benchmarks.loopback`."""

import ssl
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx

import stkai
from benchmarks import _subjects as subjects
from benchmarks._crowd import throughput
from benchmarks._harness import Table, counted, interleave, ratios, run, show, versions
from benchmarks._original import NAME, Original, original
from benchmarks._server import own_authority, serving

BARE = "bare httpx.Client"
OWN = "**stkai**: stkai.HttpClient"
THREADS = (1, 8, 32)

_Runs = dict[str, Callable[[], float]]


def measure(quick: bool) -> Sequence[Table]:
    """Requests per second to a server on loopback."""
    count, rounds = (200, 3) if quick else (1_000, 15)
    columns: list[dict[str, list[float]]] = []
    reuse: list[list[str]] = []
    with ExitStack() as stack:
        certificate, trusted = stack.enter_context(own_authority())
        plain = stack.enter_context(serving())
        secure = stack.enter_context(serving(certificate=certificate))
        old = stack.enter_context(original())
        columns += [_column(plain, threads, count, rounds, old, None) for threads in THREADS]
        columns.append(_column(secure, 1, count, rounds, old, trusted))
        for name, call in _senders(plain, None).items():
            before = _opened(plain)
            throughput(call, 8, count)
            reuse.append([name, f"{(_opened(plain) - before - 1) / (count + 16):.3f}"])
    rows = [
        [name, *(show(column[name]) if name in column else "-" for column in columns)] for name in columns[0]
    ]
    titles = [counted(threads, "thread") for threads in THREADS]
    note = (
        "Mounted: the standard stack in an httpx.Client. stkai 0.4.18 reads all certificates again for each connection."
        f" {versions('httpx', 'httpx2')}."
    )
    return [
        Table(
            "loopback",
            "Requests/s on loopback, ratio to bare httpx",
            ["", *titles, "TLS, 1 thread"],
            rows,
            [note],
        ),
        Table("reuse", "Connections opened per request, 8 threads", ["", "per request"], reuse),
    ]


def _column(
    url: str, threads: int, count: int, rounds: int, old: Original | None, trusted: Path | None
) -> dict[str, list[float]]:
    runs: _Runs = {
        name: partial(throughput, call, threads, count) for name, call in _senders(url, trusted).items()
    }
    if old is not None:
        path = None if trusted is None else str(trusted)
        # A new connection each time leaves that many sockets behind: fewer requests are enough.
        runs[NAME] = lambda: float(
            old.ask("loopback", url=url, threads=threads, count=count // 5, data=subjects.DATA, trusted=path)
        )
    return ratios(interleave(runs, rounds), BARE)


def _senders(url: str, trusted: Path | None) -> dict[str, Callable[[], object]]:
    import httpx2

    verify: ssl.SSLContext | bool = trusted is None or ssl.create_default_context(cafile=trusted)
    data = subjects.DATA
    with_floor = httpx.Client(transport=subjects.floor(httpx.HTTPTransport(verify=verify)))
    bare, bare2 = httpx.Client(verify=verify), httpx2.Client(verify=verify)
    stkai.STKAI.configure(http={"verify": True if trusted is None else str(trusted)})
    mounted = httpx.Client(transport=subjects.standard(None))
    own = stkai.HttpClient(subjects.standard(None))
    return {
        BARE: lambda: bare.post(url, json=data),
        "hand-written floor, mounted": lambda: with_floor.post(url, json=data),
        "**stkai**: the stack, mounted": lambda: mounted.post(url, json=data),
        OWN: lambda: own.post(url, data=data),
        "bare httpx2.Client": lambda: bare2.post(url, json=data),
    }


def _opened(url: str) -> int:
    return int(httpx.get(f"{url}/connections").text)


if __name__ == "__main__":
    run(measure)
