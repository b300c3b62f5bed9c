"""A retry layer over a scripted wire, in virtual time, and bodies that break."""

from typing import Any

import httpx

from stkai import RequestOptions, RetryPolicy
from stkai.testing import FakeClock
from stkai.transports import Attempt, Call, Context, retry
from stkai.transports._call import ATTEMPT

from ...support.clients import Body
from ...support.event_log import EventLog
from ...support.wire import Answer, Handler
from ...support.world import World

URL = "https://api.example.com/v1"


class Bench:
    """A retry layer over a scripted wire, on a clock that jumps, with the events it emitted."""

    def __init__(
        self, world: World, *script: Answer | Handler, policy: RetryPolicy | None = None, **context: Any
    ) -> None:
        self.world = world
        self.wire = world.wire(*script)
        self.clock = FakeClock()
        self.log = EventLog()
        given: dict[str, Any] = {"clock": self.clock, "listener": self.log, "random": lambda: 0.0}
        self.transport = world.layer(retry(policy), self.wire, context=Context(**given | context))

    async def send(self, request: httpx.Request | None = None, **options: Any) -> httpx.Response:
        request = request or httpx.Request("POST", URL, content=b"body")
        if options:
            request.extensions["stkai"] = RequestOptions(**options)
        return await self.world.send(self.transport, request)

    async def send_buffered(self) -> httpx.Response:
        """As the clients do, which want the whole body."""
        request = httpx.Request("POST", URL, content=b"body")
        attempt = Attempt(Call.start(request, self.clock.monotonic(), buffered=True))
        request.extensions[ATTEMPT] = attempt
        response = await self.send(request)
        await self.world.read(response)
        attempt.finish(response, self.clock.monotonic())
        return response


def busy(status: int = 503, after: float | str | None = None) -> httpx.Response:
    headers = {} if after is None else {"Retry-After": str(after)}
    return httpx.Response(status, headers=headers, content=b"busy")


def broken(error: BaseException | None = None) -> httpx.Response:
    """An answer whose body breaks after its first bytes."""
    return httpx.Response(200, stream=Body(b"half", error or httpx.ReadError("reset")))
