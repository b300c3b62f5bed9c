"""A language model on loopback, in its own process: it answers after a delay, and says how many tokens it used.

It understands only what the clients of these benchmarks send. `GET /used` returns what it used in each second since its
first answer began, as JSON; `DELETE /used` starts over.
"""

import asyncio
import contextlib
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

LEAST, MOST = 50, 450
"""Tokens that an answer uses, including the prompt; uniform in between."""

LATENCY = 0.2
"""Seconds until an answer, plus or minus a fifth."""


class _Model(asyncio.Protocol):
    chance = random.Random(7)  # noqa: S311 - tokens are no secret
    began: float | None = None
    used: list[float] = []  # noqa: RUF012 - one model, however many connections

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        _, named, rest = head.lower().partition(b"\r\ncontent-length: ")
        if not blank or len(body) < (int(rest.split(b"\r\n", 1)[0]) if named else 0):
            return
        self._buffer = b""
        if b" /used " in head.partition(b"\r\n")[0]:
            self._write(_Model.used)
            if head.startswith(b"DELETE"):
                _Model.began, _Model.used = None, []
            return
        used = _Model.chance.randint(LEAST, MOST)
        _Model.count(used)
        delay = LATENCY * _Model.chance.uniform(0.8, 1.2)
        asyncio.get_running_loop().call_later(delay, self._write, _completion(used))

    @classmethod
    def count(cls, used: int) -> None:
        now = time.monotonic()
        cls.began = now if cls.began is None else cls.began
        second = int(now - cls.began)
        cls.used += [0.0] * (second + 1 - len(cls.used))
        cls.used[second] += used

    def _write(self, answer: object) -> None:
        if self._transport is not None:
            body = json.dumps(answer).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            self._transport.write(head.encode() + body)


def _completion(used: int) -> dict[str, object]:
    message = {"role": "assistant", "content": "It depends."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": LEAST - 10, "completion_tokens": used - LEAST + 10, "total_tokens": used}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "echo",
        "choices": [choice],
        "usage": usage,
    }


def _run(ready: Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Model, "127.0.0.1", 0, backlog=1024)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


@contextlib.contextmanager
def model() -> Iterator[str]:
    """The URL of a model that runs until the block ends."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_run, args=(theirs,), daemon=True)
    process.start()
    try:
        if not ours.poll(30):
            raise RuntimeError("the model did not start within 30 s")
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()
