"""A server on loopback, in its own process, that spoils one request in twenty, in every way it knows."""

import multiprocessing
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from stkai.testing import Answer, HangUp, QuotaServer, Reset

FAULT_RATE = 0.05

_FAULTS = (
    Answer(503),
    Answer(429, headers={"Retry-After": "0"}),
    Answer(500, body=b"x" * 20_000),
    Answer(401),
    HangUp(),
    HangUp(announced=False),
    Reset("start"),
    Reset("headers"),
    Reset("body", after=2),
    Reset("body", after=2, framing="chunked"),
    Reset("body", after=2, framing="gzip"),
    Reset("end"),
)


def _serve(pipe: Connection) -> None:
    chance = random.Random(1)  # noqa: S311 - the same faults each time
    with QuotaServer() as server:
        credentials = (server.client_id, server.client_secret, server.token_url)

        def refill() -> None:
            if server.faults_left < 5_000:
                server.fail_with(*(_draw(chance) for _ in range(5_000)), path="/echo")

        refill()
        pipe.send((credentials, f"{server.url}/echo"))
        seen, is_over = 0, False
        while not is_over:
            is_over = pipe.poll(0.02)
            refill()
            while server._service.log:
                server._service.log.pop(0)
                seen += 1
        pipe.send(seen)


def _draw(chance: random.Random) -> Answer | HangUp | Reset | None:
    return chance.choice(_FAULTS) if chance.random() < FAULT_RATE else None


@dataclass
class Spoiler:
    """A server that spoils requests.

    Attributes:
        credentials: client id, client secret and token URL.
        url: where to send requests.
        seen: how many requests it received in total, including those for tokens; known at the end.
    """

    credentials: tuple[str, str, str]
    url: str
    seen: int = 0


@contextmanager
def serving() -> Iterator[Spoiler]:
    """A server that spoils requests until the block ends."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        if not ours.poll(60):
            raise RuntimeError("the server did not start within 60 s")
        server = Spoiler(*ours.recv())
        yield server
        ours.send("stop")
        server.seen = ours.recv()
        process.join()
    finally:
        process.kill()
        process.join()
