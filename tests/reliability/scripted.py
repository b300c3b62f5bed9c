"""A whole stack over a scripted wire in virtual time, and the ledger used to check invariants."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from stkai import AuthProvider
from stkai.testing import FakeClock

from ..support.clients import Body
from ..support.crowd import took
from ..support.wire import Answer, Wire
from ..support.world import World


@dataclass(frozen=True)
class Step:
    """What the wire does with one request.

    Attributes:
        status: the status of the answer.
        after: its `Retry-After`.
        delay: seconds until it comes; the request's timeout may end the wait earlier.
        breaks: where the connection breaks, if it does.
    """

    status: int = 200
    after: str | None = None
    delay: float = 0.0
    breaks: Literal["connect", "before", "body", "gzip"] | None = None

    @property
    def asked(self) -> float:
        """Seconds for which the answer asks the client to wait."""
        return float(self.after) if self.after and self.after.replace(".", "").isdecimal() else 0.0


@dataclass
class Sending:
    """One request on the wire: whose it was, when it was sent, what came back and when."""

    call: str
    sent: float
    step: Step
    token: str | None
    answered: float = math.inf


@dataclass
class Ledger:
    """Plays a script, and records what happens."""

    world: World
    clock: FakeClock
    script: Sequence[Step]
    sendings: list[Sending] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._steps = itertools.chain(self.script, itertools.repeat(Step()))
        self.wire = Wire(self._answer)

    async def _answer(self, request: httpx.Request) -> Answer:
        step = next(self._steps)
        token = request.headers.get("authorization")
        sending = Sending(request.url.path, self.clock.monotonic(), step, token)
        self.sendings.append(sending)
        if step.breaks == "connect":
            return httpx.ConnectError("refused")
        allowed = request.extensions.get("timeout", {}).get("read") or math.inf
        if step.delay:
            await self.world.sleep(self.clock, min(step.delay, allowed))
        if step.delay > allowed:
            return httpx.ReadTimeout("slow")
        if step.breaks == "before":
            return httpx.RemoteProtocolError("Server disconnected without sending a response.")
        sending.answered = self.clock.monotonic()
        headers = {} if step.after is None else {"Retry-After": step.after}
        if step.breaks is None:
            return httpx.Response(step.status, headers=headers, content=b"whole")
        if step.breaks == "gzip":
            headers["Content-Encoding"] = "gzip"
        return httpx.Response(
            step.status,
            headers=headers,
            stream=Body(b"\x1f\x8b\x08\x00", httpx.ReadError("connection reset")),
        )

    def of(self, call: str) -> list[Sending]:
        return [sending for sending in self.sendings if sending.call == call]


class Tokens(AuthProvider):
    """Issues numbered tokens, each after some seconds on the clock."""

    def __init__(self, clock: FakeClock, delay: float) -> None:
        self.clock, self.delay = clock, delay
        self.issued = 0
        self.kept: str | None = None

    def cached_access_token(self, *, renewing: bool = False) -> str | None:
        return self.kept

    def forget(self, token: str) -> None:
        if token == self.kept:
            self.kept = None

    def get_access_token(self) -> str:
        if self.kept is None:
            self.clock.sleep(self.delay)
            self._issue()
        return str(self.kept)

    async def aget_access_token(self) -> str:
        if self.kept is None:
            await self.clock.asleep(self.delay)
            self._issue()
        return str(self.kept)

    def _issue(self) -> None:
        self.issued += 1
        self.kept = f"token-{self.issued}"


def conserved(policy: Any, now: float) -> bool:
    """Whether a limiter's queue is empty and, after a long rest, it grants exactly its burst."""
    rested = now + 1e6
    taken = 0
    while took(policy, rested):
        taken += 1
    return policy.waiting == 0 and taken == int(policy.burst + 1e-6)
