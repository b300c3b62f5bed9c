"""The network side of the server, on aiohttp: reads requests, sends answers, and carries out faults."""

import asyncio
import socket
import struct
from concurrent.futures import Future
from functools import partial
from typing import Final

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from .._clock import uniform
from ._replies import Hang, Reply, RequestRecord, Reset
from ._service import API, Service

_RESET_DELAY: Final = 0.01  # Seconds before a reset, so that the client has read the bytes before it.
_SHUTDOWN: Final = 0.05  # Seconds that requests in progress may still take when the server closes.
_ANY_SIZE: Final = 2**40
_NO_BODY: Final = (204, 304)


async def serve(service: Service, listening: socket.socket, stop: "Future[None]") -> None:
    """Serve the connections that this socket accepts, until `stop` has a result; then close it."""
    app = web.Application(client_max_size=_ANY_SIZE)
    app.router.add_route("*", "/{path:.*}", partial(_handle, service))
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN)
    await runner.setup()
    try:
        await web.SockSite(runner, listening, backlog=1024).start()
        await asyncio.wrap_future(stop)
    finally:
        await runner.cleanup()


async def _handle(service: Service, request: web.Request) -> web.StreamResponse:
    record = await _record(service, request)
    service.log.append(record)
    fault = service.fault_for(record.path)
    if isinstance(fault, Reset) and fault.at == "start":
        return _reset(request)
    if isinstance(fault, Hang):
        await asyncio.sleep(fault.seconds)
    reply = service.reply(record, fault)
    if record.path.startswith(API):
        low, high = service.latency
        await asyncio.sleep(low + (high - low) * uniform())
    if isinstance(fault, Reset) and fault.at == "headers":
        _transport(request).write(reply.head[: fault.after])
        await asyncio.sleep(_RESET_DELAY)
        return _reset(request)
    record.status = reply.status
    try:
        return await _deliver(request, reply)
    except ConnectionResetError:  # The client may disconnect in the middle of a body.
        return web.Response()


async def _record(service: Service, request: web.Request) -> RequestRecord:
    body = await request.read()
    return RequestRecord(
        time=service.clock.monotonic(),
        method=request.method,
        path=request.path,
        query=request.rel_url.raw_query_string,
        headers=tuple((name.lower(), value) for name, value in request.headers.items()),
        body=body,
        connection=service.number_of(_transport(request)),
    )


async def _deliver(request: web.Request, reply: Reply) -> web.StreamResponse:
    headers = CIMultiDict(reply.headers)
    pieces = () if reply.status in _NO_BODY else reply.sent()
    if reply.ending == "keep" and not reply.streamed and not (reply.pause and len(pieces) > 1):
        return web.Response(status=reply.status, headers=headers, body=b"".join(pieces))
    response = web.StreamResponse(status=reply.status, headers=headers)
    if not reply.streamed:
        response.content_length = len(reply.body)
    elif request.version >= HttpVersion11:  # nginx is a client of HTTP/1.0, unless told otherwise.
        response.enable_chunked_encoding()
    if reply.ending == "close":
        response.force_close()
    await response.prepare(request)
    for index, piece in enumerate(pieces):
        await asyncio.sleep(reply.pause if index else 0)
        await response.write(piece)
    if reply.cut is None:
        await response.write_eof()
    else:
        await asyncio.sleep(_RESET_DELAY)
    if reply.ending == "reset":
        _reset(request)
    elif reply.ending != "keep":
        _transport(request).close()
    return response


def _reset(request: web.Request) -> web.StreamResponse:
    """Abort with RST instead of FIN. aiohttp drops the returned response, since the connection is closed."""
    transport = _transport(request)
    transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    transport.abort()
    return web.Response()


def _transport(request: web.Request) -> asyncio.Transport:
    """The connection; never None, because aiohttp cancels the handler when its client disconnects."""
    transport = request.transport
    assert transport is not None
    return transport
