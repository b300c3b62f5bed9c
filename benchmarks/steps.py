"""Bytecode instructions per request, over a wire that answers at once: `python -m benchmarks.steps [--functions]`.

Unlike times, they are the same on a busy machine, so they show what a change costs. What runs in C counts as one
instruction of its caller.
"""

import asyncio
import collections
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx

import stkai
from benchmarks import _subjects as subjects
from benchmarks._harness import Table, run, versions

REQUESTS = 20
HOME = str(Path(stkai.__file__).parent)

Counts = collections.Counter[CodeType]
Send = Callable[[], Awaitable[object]]


def measure(quick: bool) -> Sequence[Table]:
    """Bytecode instructions per request, in all and in stkai's own code."""
    rows = []
    for name, (sync, asynchronous) in _senders().items():
        counts = [_count(sync), asyncio.run(_acount(asynchronous))]
        cells = [f"{sum(found.values()) / REQUESTS:,.0f}" for found in counts]
        cells += [f"{_own(found) / REQUESTS:,.0f}" for found in counts]
        rows.append([name, *cells])
    columns = ["", "sync", "async", "in stkai, sync", "in stkai, async"]
    return [Table("steps", "Bytecode instructions per request", columns, rows, [f"{versions('httpx')}."])]


def _senders() -> dict[str, tuple[Callable[[], object], Send]]:
    url, data, answer = subjects.URL, subjects.DATA, subjects.answer
    bare, abare = httpx.Client(transport=answer()), httpx.AsyncClient(transport=answer())
    mounted = httpx.Client(transport=subjects.standard(answer()))
    amounted = httpx.AsyncClient(transport=subjects.async_standard(answer()))
    own = stkai.HttpClient(subjects.standard(answer()))
    aown = stkai.AsyncHttpClient(subjects.async_standard(answer()))
    return {
        "bare httpx client": (lambda: bare.post(url, json=data), lambda: abare.post(url, json=data)),
        "**stkai**: retry, auth, adaptive": (
            lambda: mounted.post(url, json=data),
            lambda: amounted.post(url, json=data),
        ),
        "**stkai**'s own client over that stack": (
            lambda: own.post(url, data=data),
            lambda: aown.post(url, data=data),
        ),
    }


def _own(counts: Counts) -> int:
    return sum(number for code, number in counts.items() if code.co_filename.startswith(HOME))


@contextmanager
def _counting() -> Iterator[Counts]:
    counts: Counts = collections.Counter()

    def step(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            counts[frame.f_code] += 1
        return step

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return step

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield counts
    finally:
        sys.settrace(before)


def _count(send: Callable[[], object]) -> Counts:
    for _ in range(5 * REQUESTS):
        send()
    with _counting() as counts:
        send()  # Python counts what a function does from its second call on.
        counts.clear()
        for _ in range(REQUESTS):
            send()
    return counts


async def _acount(send: Send) -> Counts:
    for _ in range(5 * REQUESTS):
        await send()
    with _counting() as counts:
        await send()  # See `_count`.
        counts.clear()
        for _ in range(REQUESTS):
            await send()
    return counts


def show_functions() -> None:
    """Print where the instructions of a mounted stack are, by function."""
    sync, _ = list(_senders().values())[1]
    for code, number in _count(sync).most_common():
        if code.co_filename.startswith(HOME):
            print(f"{number / REQUESTS:8.1f}  {code.co_qualname}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--functions"]:
        show_functions()
    else:
        run(measure)
