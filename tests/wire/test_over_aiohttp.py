"""The wire over aiohttp does what httpx's own wire does, case by case; where it differs, it must be the safer one."""

import asyncio
import contextlib
import errno
import gc
import os
import ssl
import threading
import time
import warnings
from collections.abc import AsyncIterator
from itertools import product
from typing import Any
from unittest.mock import Mock

import aiohttp
import h11
import httpx
import pytest
from aiohttp import client_proto, http_parser

import stkai
from stkai import ConfigurationError, HttpConfig
from stkai._wire import AsyncDefaultWire
from stkai._wire.aiohttp_connection import _PARSER, Connection
from stkai._wire.aiohttp_exchange import plain_request
from stkai.testing import QuotaServer

from ..support import servers
from ..support.secrecy import shown_by
from ..support.servers import CERTIFICATE, KEY, Proxy
from ..support.world import World
from .differential import CHUNKED, LIMIT, OK, Case, Peer, answers, many, pieces, play
from .raw import raw_server

pytestmark = [pytest.mark.real_time, pytest.mark.worlds("asyncio")]

HEAD = b"HTTP/1.1 200 OK\r\n"
SHORT = HEAD + b"Content-Length: 10\r\n\r\nbody"


async def keeps_then_cuts(peer: Peer) -> None:
    """The server closes the reused connection once it has read the second request."""
    await peer.head()
    await peer.send(OK)
    await peer.head()


async def never_reads(peer: Peer) -> None:
    peer.stop_reading()
    await asyncio.sleep(4 * LIMIT)


async def pauses_in_the_body(peer: Peer) -> None:
    await peer.head()
    await peer.send(HEAD + b"Content-Length: 8\r\n\r\nbody")
    await asyncio.sleep(2 * LIMIT)
    await peer.send(b"more")


async def hangs(peer: Peer) -> None:
    await asyncio.sleep(4 * LIMIT)


async def waits_between_parts() -> AsyncIterator[bytes]:
    """Its first part must arrive before the second is there."""
    yield b"ab"
    await asyncio.sleep(1.5 * LIMIT)
    yield b"cd"


async def answers_a_first_part(peer: Peer) -> None:
    while b"ab" not in peer.seen:
        await peer.read()
    await peer.send(OK)
    while await peer.read():
        pass


SAME = {
    "an answer": Case(answers(OK)),
    "answers on one connection": Case(answers(OK, end="keep"), times=3),
    "chunks": Case(answers(CHUNKED + b"4\r\nbody\r\n0\r\n\r\n", end="keep"), times=2),
    "a trailer": Case(answers(CHUNKED + b"4\r\nbody\r\n0\r\nX: 1\r\n\r\n", end="keep"), times=2),
    "no answer": Case(answers(), method="POST"),
    "a reset instead of an answer": Case(answers(end="reset"), method="POST"),
    "silence": Case(answers(end="hang"), method="POST"),
    "half a head": Case(answers(HEAD[:9])),
    "half a head, then a reset": Case(answers(HEAD[:9], end="reset")),
    "half a head, then silence": Case(answers(HEAD[:9], end="hang")),
    "half a body": Case(answers(SHORT)),
    "half a body, then a reset": Case(answers(SHORT, end="reset")),
    "half a body, then silence": Case(answers(SHORT, end="hang")),
    "a body that the end of the connection ends": Case(answers(HEAD + b"\r\nbody")),
    "such a body, cut by a reset": Case(answers(HEAD + b"\r\nbody", end="reset")),
    "such a body, then silence": Case(answers(HEAD + b"\r\nbody", end="hang")),
    "chunks without an end": Case(answers(CHUNKED + b"4\r\nbody\r\n")),
    "chunks cut by a reset": Case(answers(CHUNKED + b"4\r\nbo", end="reset")),
    "a chunk whose size is no number": Case(answers(CHUNKED + b"zz\r\nbody\r\n0\r\n\r\n", end="hang")),
    "a chunk that is longer than it says": Case(answers(CHUNKED + b"4\r\nbodyX\r\n0\r\n\r\n", end="hang")),
    "a bad chunk that arrives with the end of a good one": Case(
        answers(CHUNKED + b"4\r\nbody", b"\r\nzz\r\n", pause=0.02, end="hang")
    ),
    "a bad chunk after a good one": Case(answers(CHUNKED + b"4\r\nbody\r\n", b"zz\r\n", pause=0.02, end="hang")),
    "a bad trailer": Case(answers(CHUNKED + b"4\r\nbody\r\n0\r\nBad Trailer\r\n\r\n", end="hang")),
    "a head without an end": Case(answers(HEAD, *[b"X: " + b"a" * 20_000 + b"\r\n"] * 10, end="hang")),
    "early hints, then a long body": Case(
        answers(b"HTTP/1.1 103 Early\r\n\r\n", HEAD + b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000, end="keep"),
        times=2,
    ),
    "something else than HTTP": Case(answers(b"SSH-2.0-x\r\n\r\n")),
    "an impossible status": Case(answers(b"HTTP/1.1 999999 X\r\n\r\n")),
    "an illegal header": Case(answers(HEAD + b"Bad Header: 1\r\n\r\n")),
    "HTTP/1.0": Case(answers(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody"), times=2),
    "HTTP/1.0 without length": Case(answers(b"HTTP/1.0 200 OK\r\n\r\nbody")),
    "no reason": Case(answers(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n")),
    "a reason in any bytes": Case(answers(b"HTTP/1.1 200 \xe9t\xc3\xa9\r\nContent-Length: 0\r\n\r\n")),
    "duplicates, order and case of headers": Case(
        answers(many(HEAD, [b"Set-Cookie: a=1", b"X-a: 1", b"set-cookie: b=2", b"X-A: 2"]), end="keep"), times=2
    ),
    "headers in any bytes": Case(answers(many(HEAD, [b"X: \xe9", b"Y:", b"Z:   a b  "]))),
    "a folded header": Case(answers(many(HEAD, [b"X: a\r\n b"]))),
    "a thousand headers": Case(answers(many(HEAD, [b"X-%d: 1" % number for number in range(1000)]))),
    "a line of 60 kB": Case(answers(many(HEAD, [b"X: " + b"a" * 60_000]))),
    "two lengths": Case(answers(HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody")),
    "a negative length": Case(answers(HEAD + b"Content-Length: -4\r\n\r\nbody")),
    "304 with a length": Case(answers(b"HTTP/1.1 304 N\r\nContent-Length: 4\r\n\r\n", end="keep"), times=2),
    "100, then the answer": Case(answers(b"HTTP/1.1 100 Continue\r\n\r\n" + OK, end="keep"), times=2),
    "100 that closes the connection, then the answer": Case(
        answers(b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n", OK, pause=0.02, end="keep"), times=2
    ),
    "100 in HTTP/1.0, then the answer": Case(answers(b"HTTP/1.0 100 Continue\r\n\r\n" + OK, end="keep"), times=2),
    "a trailer in drips": Case(
        answers(CHUNKED + b"4\r\nbody\r\n0\r\n", *[b"X: 1\r\n"] * 5, b"\r\n", pause=LIMIT / 3)
    ),
    "the same header twice": Case(answers(many(HEAD, [b"Server: a", b"Server: b", b"ETag: 1", b"ETag: 1"]))),
    "HEAD, answered without a length": Case(answers(HEAD + b"\r\n", end="keep"), method="HEAD", times=3),
    "HEAD, answered by a server that will close": Case(
        answers(HEAD + b"Connection: close\r\n\r\n", end="keep"), method="HEAD", times=2
    ),
    "HEAD in HTTP/1.0": Case(answers(b"HTTP/1.0 200 OK\r\n\r\n", end="keep"), method="HEAD", times=2),
    "early hints": Case(answers(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" * 3 + OK)),
    "early hints, then silence": Case(answers(b"HTTP/1.1 103 Early\r\n\r\n", end="hang"), method="POST"),
    "a status below 100": Case(answers(b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n")),
    "an encoding of the transfer that is not chunked": Case(
        answers(HEAD + b"Transfer-Encoding: gzip\r\n\r\nbody")
    ),
    "a second encoding of the transfer": Case(
        answers(HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
    ),
    "a hundred informational answers": Case(answers(b"HTTP/1.1 102 P\r\n\r\n" * 100 + OK, end="keep"), times=2),
    "zeros and an extension around a chunk's size": Case(
        answers(CHUNKED + b"0004;ext=1\r\nbody\r\n0\r\n\r\n", end="keep"), times=2
    ),
    "204 with a length": Case(answers(b"HTTP/1.1 204 N\r\nContent-Length: 4\r\n\r\n", end="keep"), times=2),
    "more than its length says": Case(answers(OK + b"more")),
    "more, behind a head in two parts": Case(answers(OK[:30], OK[30:] + b"more", pause=0.02)),
    "more, behind a head that is cut in its end": Case(answers(OK[:36], OK[36:] + b"more", pause=0.02)),
    "more, behind an informational answer": Case(answers(b"HTTP/1.1 102 P\r\n\r\n" + OK + b"more")),
    "HEAD, answered with early hints and a body": Case(
        answers(b"HTTP/1.1 103 Early\r\n\r\n" + OK), method="HEAD"
    ),
    "more after the last chunk": Case(answers(CHUNKED + b"4\r\nbody\r\n0\r\n\r\nmore")),
    "a part of another answer behind the last chunk": Case(
        answers(CHUNKED + b"4\r\nbody\r\n0\r\n\r\nHTTP/1.1 2", end="keep"), times=2
    ),
    "informational answers that are together too long for a head": Case(
        answers((b"HTTP/1.1 103 Early\r\nLink: " + b"x" * 60_000 + b"\r\n\r\n") * 3 + OK, end="keep"), times=2
    ),
    "100, then the end": Case(answers(b"HTTP/1.1 100 Continue\r\n\r\n")),
    "another protocol": Case(answers(b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")),
    "line feeds alone": Case(answers(b"HTTP/1.1 200 OK\nContent-Length: 4\n\nbody")),
    "line feeds alone, and more than the length says": Case(
        answers(b"HTTP/1.1 200 OK\nContent-Length: 4\n\nbodymore")
    ),
    "line feeds alone, and more, behind a head that is cut in its end": Case(
        answers(b"HTTP/1.1 200 OK\nContent-Length: 4\n", b"\nbodymore", pause=0.02)
    ),
    "line feeds alone in an informational answer that closes the connection": Case(
        answers(b"HTTP/1.1 100 Continue\nConnection: close\n\n" + OK)
    ),
    "an encoded body": Case(answers(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nbody")),
    "a server that will close": Case(answers(HEAD + b"Connection: close\r\nContent-Length: 0\r\n\r\n"), times=2),
    "a redirect": Case(
        answers(b"HTTP/1.1 302 F\r\nLocation: /x\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n", end="keep"),
        times=2,
    ),
    "HEAD, answered with a body": Case(answers(OK), method="HEAD"),
    "HEAD": Case(answers(HEAD + b"Content-Length: 4\r\n\r\n", end="keep"), method="HEAD", times=2),
    "a head in drips": Case(answers(*[OK[place : place + 1] for place in range(12)], OK[12:], pause=0.04)),
    "a body in drips": Case(answers(HEAD + b"Content-Length: 6\r\n\r\n", *[b"x"] * 6, pause=LIMIT / 3)),
    "a large body": Case(
        answers(HEAD + b"Content-Length: 3000000\r\n\r\n" + b"x" * 3_000_000, end="keep"), times=2
    ),
    "a caller that pauses": Case(pauses_in_the_body, read="slowly"),
    "a caller that stops early": Case(
        answers(HEAD + b"Content-Length: 100000000\r\n\r\n", *[b"x" * 100_000] * 30, end="hang"),
        read="first", times=3,
    ),
    "a caller that cancels before the head": Case(hangs, cancel=0.05, times=2),
    "a caller that cancels in the body": Case(answers(SHORT, end="hang"), cancel=0.2, times=2),
    "an idle connection that the server closed": Case(answers(OK), times=2, pause=0.05, method="POST"),
    "a reused connection cut on a GET": Case(keeps_then_cuts, times=2),
    "a reused connection cut on a PUT": Case(keeps_then_cuts, times=2, method="PUT"),
    "a reused connection cut on a POST": Case(keeps_then_cuts, times=2, method="POST"),
    "a server that does not read": Case(never_reads, body=b"x" * 20_000_000, method="POST"),
    "no headers of its own": Case(),
    "a body in parts": Case(body=pieces(b"ab", b"", b"cd"), method="POST"),
    "a body of the right length": Case(body=pieces(b"a", b"b"), headers={"Content-Length": "2"}, method="POST"),
    "a chunked body": Case(body=pieces(b"ab"), headers={"Transfer-Encoding": "chunked"}, method="POST"),
    "a body with GET": Case(body=b"hi"),
    "a method in lower case": Case(method="get"),
    "header values in any bytes": Case(headers=[(b"X", b"\xe9"), (b"Y", b"")]),
    "order and case of the request's headers": Case(headers=[("b-B", "1"), ("A", "2"), ("b-b", "3")]),
    "escapes and a fragment": Case(path="/a%20b?x=1&y=%zz#f"),
    "an odd path": Case(path="//x/../y;a=b,c|d"),
    "a target of its own": Case(method="OPTIONS", target=b"*"),
    "a body that waits for the server": Case(
        answers_a_first_part, body=waits_between_parts, method="POST"
    ),
    "a request that closes": Case(answers(OK, end="keep"), headers={"Connection": "close"}, times=2),
    "a coding that is not quite chunked": Case(
        answers(HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
    ),
    "a request that expects 100": Case(body=b"x", headers={"Expect": "100-continue"}, method="POST"),
}  # fmt: skip


def both(case: Case) -> tuple[Any, Any]:
    """What comes of a scenario over httpx's wire, and over this one."""
    config = HttpConfig()

    async def play_both() -> tuple[Any, Any]:
        theirs = play(lambda: AsyncDefaultWire(config), case)
        return await asyncio.gather(theirs, play(lambda: stkai.wires.aiohttp(config), case))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return asyncio.run(play_both())


@pytest.mark.parametrize("case", SAME.values(), ids=SAME)
def test_the_caller_and_the_server_see_what_they_see_over_httpx(case: Case) -> None:
    for _ in range(3):  # On a busy machine, a time limit may strike at another step.
        theirs, ours = both(case)
        if ours == theirs:
            break
    assert ours == theirs


@pytest.mark.parametrize("name", ["no reason", "a redirect", "a server that will close"])
def test_an_answer_without_body_is_read_without_the_c_extensions_of_aiohttp(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_proto, "HttpResponseParser", http_parser.HttpResponseParserPy)
    theirs, ours = both(SAME[name])
    assert ours == theirs


@pytest.mark.parametrize("name", ["the same header twice", "a folded header", "line feeds alone"])
def test_the_debug_mode_of_asyncio_refuses_no_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp's parser is stricter there."""
    monkeypatch.setattr(_PARSER, "DEBUG", True)
    theirs, ours = both(SAME[name])
    assert ours == theirs
    assert _PARSER.DEBUG is True


def test_an_ordinary_request_is_put_together_without_h11() -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"):
        body = {"json": {"question": "?"}} if method.startswith("P") else {}
        request = httpx.Client().build_request(method, "https://api.example.com/v1/chat?a=%20b", **body)  # type: ignore[arg-type]
        request.headers["Authorization"] = "Bearer secret"
        assert plain_request(request) == _by_h11(request)


_USUAL = {"Host": "a.example", "Connection": "keep-alive", "Content-Length": "1", "Accept": "*/*"}
_NAMES = [*_USUAL, "x-id", "host", "Transfer-Encoding", "Upgrade", "Expect", "a b", "a,b", "a:"]
_VALUES = [
    *_USUAL.values(),
    "",
    "2",
    "close",
    "chunked",
    "100-continue",
    "a  b",
    " a",
    "a\t",
    "\x7fé",
    "a\r\nb: c",
    "a\nb",
]


class _OddUrl(httpx.URL):
    raw_path = b"/a b"


def test_what_is_put_together_without_h11_has_the_same_bytes() -> None:
    usual = list(_USUAL.items())
    heads = [
        *([*usual, field] for field in product(_NAMES, _VALUES)),
        *(
            [field if field[0] == other[0] else other for other in usual]
            for field in product(_USUAL, _VALUES)
        ),
        *([other for other in usual if other[0] != name] for name in _USUAL),
        usual[::-1],
        [],
    ]
    urls = [httpx.URL("http://a.example"), httpx.URL("http://a.example/é?b=c d"), _OddUrl("http://a.example")]
    for fields, method, body in product(heads, ("POST", "OPTIONS", "CONNECT", "A B"), (b"", b"1", b"12")):
        request = httpx.Request(method, urls[0], content=body)
        request.headers = httpx.Headers([(name.encode(), value.encode("latin-1")) for name, value in fields])
        for request.url in urls:
            if made := plain_request(request):
                assert made == _by_h11(request)


def _by_h11(request: httpx.Request) -> bytes:
    """The bytes of a request after which the connection can be used again."""
    machine, url = h11.Connection(h11.CLIENT), request.url
    events = [
        h11.Request(method=request.method, target=url.raw_path, headers=request.headers.raw),
        h11.Data(data=request.content),
        h11.EndOfMessage(),
    ]
    made = b"".join(machine.send(event) or b"" for event in events)
    assert machine.our_state is h11.DONE
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": {"X": "a\nb"}},
        {"headers": {"X y": "a"}},
        {"headers": {"X": " a "}},
        {"method": "GE T"},
        {"headers": {"Content-Length": "x"}, "body": pieces(b"a"), "method": "POST"},
        {"headers": {"Content-Length": "2"}, "body": b"abc", "method": "POST"},
        {"headers": {"Content-Length": "2"}, "body": b"a", "method": "POST"},
    ],
)
def test_an_illegal_request_is_a_local_protocol_error_and_sends_nothing(changes: dict[str, Any]) -> None:
    _, ours = both(Case(**changes))
    assert [outcome[0] for outcome in ours.outcomes] == [httpx.LocalProtocolError]
    assert ours.requests == b""


async def test_the_variables_in_a_traceback_of_a_request_that_is_not_sent_hold_no_token(world: World) -> None:
    wire = stkai.build_async_transport(
        auth=stkai.StaticToken("the-token"), transport=stkai.wires.aiohttp(), retry=None
    )
    async with httpx.AsyncClient(transport=wire) as client:
        for headers, kind in (({"X-Bad\n": "1"}, httpx.LocalProtocolError), ({}, httpx.ConnectError)):
            with pytest.raises(kind) as caught:
                await client.get("http://127.0.0.1:9/", headers=headers)
            assert "the-token" not in shown_by(caught.value, own=__file__)


@pytest.mark.parametrize("body", [pieces(b"abc"), pieces(b"a")])
def test_a_stream_of_another_length_than_announced_is_a_local_protocol_error(body: Any) -> None:
    """Over both wires; httpx's transport raises an error of h11's."""
    theirs, ours = both(Case(body=body, headers={"Content-Length": "2"}, method="POST"))
    assert ours == theirs
    assert [outcome[0] for outcome in ours.outcomes] == [httpx.LocalProtocolError]


@pytest.mark.parametrize("url", ["/x", "http:///x", "ftp://127.0.0.1/"])
async def test_an_address_that_is_not_on_the_web_is_an_unsupported_protocol(world: World, url: str) -> None:
    async with over_aiohttp() as wire:
        with pytest.raises(httpx.UnsupportedProtocol, match="http://"):
            await wire.handle_async_request(httpx.Request("GET", url))


def test_the_error_of_a_body_reaches_the_caller() -> None:
    _, ours = both(Case(body=pieces(b"a", error=KeyError("mine")), method="POST"))
    assert [outcome[0] for outcome in ours.outcomes] == [KeyError]


@pytest.mark.parametrize("stray", [OK, b"HTTP/1.1 5", b"\r\n"])
def test_bytes_that_arrive_on_an_idle_connection_reach_no_later_request(stray: bytes) -> None:
    _, ours = both(Case(answers(OK, stray, end="keep", pause=0.02), times=3, pause=0.1))
    assert [outcome[0] for outcome in ours.outcomes] == [200, 200, 200]
    assert all(outcome[-1] == b"body" for outcome in ours.outcomes)
    assert ours.connections > 1


def test_chunks_never_reach_the_caller_as_the_body() -> None:
    """aiohttp's parser takes a coding followed by a tab for another one."""
    chunked = HEAD + b"Transfer-Encoding: chunked\t\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
    _, ours = both(Case(answers(chunked), method="POST"))
    assert [outcome[0] for outcome in ours.outcomes] == [httpx.RemoteProtocolError]


@pytest.mark.parametrize("ends", ["close", "reset", "hang"])
def test_an_answer_before_the_end_of_a_long_request_reaches_the_caller(ends: str) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.read()
        await peer.send(b"HTTP/1.1 413 Too\r\nContent-Length: 3\r\n\r\nbig")
        await asyncio.sleep(0.05)
        if ends == "reset":
            peer.reset()
        if ends == "hang":
            peer.stop_reading()
            await asyncio.sleep(4 * LIMIT)

    _, ours = both(Case(refuse, body=b"x" * 20_000_000, method="POST", times=2))
    assert [(outcome[0], outcome[-1]) for outcome in ours.outcomes] == [(413, b"big")] * 2
    assert ours.connections == 2, "the rest of the first request must not precede the second"


@pytest.mark.parametrize("secure", [False, True])
async def test_a_cancelled_upload_is_not_completed_later(world: World, secure: bool) -> None:
    """The server stalls, and reads on once the call is cancelled."""
    body, read = b"x" * 30_000_000, 0
    began, cancelled, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal read
        await reader.read(1)
        began.set()
        await cancelled.wait()
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                read += len(data)
        ended.set()
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context if secure else None)
    place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    wire: Any = stkai.wires.aiohttp(HttpConfig(verify=False))
    headers = {"Authorization": "Bearer the-token"}
    request = httpx.Request("POST", f"http{'s' * secure}://{place}/", headers=headers, content=body)
    sending = asyncio.create_task(wire.handle_async_request(request))
    await began.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await sending
    assert "the-token" not in shown_by(caught.value, own=__file__)
    cancelled.set()
    await asyncio.wait_for(ended.wait(), 10)
    await wire.aclose()
    server.close()
    assert read < len(body)


async def test_other_tasks_run_while_a_body_is_sent_that_never_waits(world: World) -> None:
    turns, seen = 0, list[int]()

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(50):
            seen.append(turns)
            yield b"x"

    other = asyncio.create_task(take_turns())
    with raw_server() as server:
        async with over_aiohttp() as wire:
            await (await wire.handle_async_request(httpx.Request("POST", server.url, content=body()))).aread()
    other.cancel()
    assert len(set(seen)) == len(seen)


@contextlib.asynccontextmanager
async def over_aiohttp(**config: Any) -> AsyncIterator[Any]:
    wire: Any = stkai.wires.aiohttp(HttpConfig(**config))
    yield wire
    await wire.aclose()


async def test_the_request_of_the_caller_is_unchanged(world: World) -> None:
    with raw_server() as server:
        request = httpx.Request("POST", server.url, json={"a": 1})
        before = list(request.headers.raw), dict(request.extensions), request.url
        async with over_aiohttp() as wire:
            await (await wire.handle_async_request(request)).aread()
        assert (list(request.headers.raw), dict(request.extensions), request.url) == before


async def error_of(url: str, config: HttpConfig, **options: Any) -> httpx.HTTPError:
    client = stkai.build_async_client(auth=None, transport=stkai.wires.aiohttp(config))
    with pytest.raises(httpx.HTTPError) as caught:
        await client.post(url, timeout=2, **options)
    await client.close()
    return caught.value


async def test_a_server_that_is_not_there_is_a_connect_error_that_names_it_and_says_why(world: World) -> None:
    refused = os.strerror(errno.ECONNREFUSED)
    with raw_server() as server:
        url = httpx.URL(server.url)
    for unreachable, place, why in (
        (url, url.netloc.decode(), refused),
        ("http://no-such.invalid/", "no-such.invalid:80", ""),
        ("http://[::1]:1/", "[::1]:1", ""),
        ("http://127.0.0.1:0/", "127.0.0.1:0", ""),
    ):
        error = await error_of(str(unreachable), HttpConfig(), retry=None)
        assert isinstance(error, httpx.ConnectError)
        assert str(error).startswith(f"cannot connect to {place}: {why}")


@pytest.mark.parametrize("make", [AsyncDefaultWire, stkai.wires.aiohttp], ids=["httpx", "aiohttp"])
async def test_a_host_for_whose_lookup_there_is_no_thread_is_a_connect_error_and_is_tried_again(
    make: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = stkai.RetryPolicy(1, initial_delay=0, retry_unknown=False)
    client = stkai.build_async_client(auth=None, retry=policy, transport=make(HttpConfig()))
    with raw_server() as server:
        url = server.url.replace("127.0.0.1", "localhost")
        monkeypatch.setattr(
            threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread"))
        )
        with pytest.raises(
            httpx.ConnectError, match="the host was not looked up: can't start new thread"
        ) as caught:
            await client.post(url)
        monkeypatch.undo()
    assert "2 attempts" in caught.value.__notes__[0]
    await client.close()


async def body_of_a_request(url: str, config: HttpConfig) -> bytes:
    async with httpx.AsyncClient(transport=stkai.wires.aiohttp(config), trust_env=False) as client:
        return (await client.get(url)).content


async def test_certificates_are_verified_as_the_settings_say(world: World) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)

    async def answer(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        return aiohttp.web.Response(body=b"private")

    with servers.serve(answer, context) as url:
        for verify in (False, str(CERTIFICATE)):
            assert await body_of_a_request(url, HttpConfig(verify=verify)) == b"private"
        error = await error_of(url, HttpConfig())
    assert isinstance(error, httpx.ConnectError)
    assert "1 attempt" in error.__notes__[0], "a certificate that is refused once is refused again"


async def test_it_asks_a_tls_server_for_http_1_1(world: World) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    context.set_alpn_protocols(["h2", "http/1.1"])

    async def answer(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        assert request.transport is not None
        return aiohttp.web.Response(
            text=request.transport.get_extra_info("ssl_object").selected_alpn_protocol()
        )

    with servers.serve(answer, context) as url:
        assert await body_of_a_request(url, HttpConfig(verify=False)) == b"http/1.1"


@pytest.mark.parametrize("password", ["secret", "p%40ss%2Fword"])
async def test_a_proxy_carries_plain_requests_and_tunnels_others(world: World, password: str) -> None:
    log = Proxy()
    with servers.serve(log.handle) as url:
        proxy = url.replace("http://", f"http://me:{password}@")
        config = HttpConfig(proxy=proxy)
        body = await body_of_a_request("http://service.example/x?y=1", config)
        assert body.startswith(b"by proxy")
        assert log.asked == [("GET", "http://service.example/x?y=1")]
        expected = httpx.Proxy(proxy).raw_auth
        assert expected is not None
        assert log.credentials == [httpx.BasicAuth(*expected)._auth_header]
        error = await error_of("https://service.example/", config)
    assert log.hosts == ["service.example", "service.example:443"]
    assert isinstance(error, httpx.ProxyError)
    assert str(error)[:3].isdecimal()
    assert "secret" not in repr(error)
    assert password not in repr(error)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 Connection established\r\n\r\n",
        b"HTTP/1.1 201 Fine\r\nX: " + b"a" * 9000 + b"\r\n\r\n",
        b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 403 \xe9t\xc3\xa9\r\n\r\n",
        b"",
        b"SSH-2.0-x\r\n\r\n",
    ],
    ids=["200", "201", "407", "403", "closed", "other"],
)
async def test_a_tunnel_is_asked_for_and_opened_as_by_the_default_wire(world: World, answer: bytes) -> None:
    asked = list[bytes]()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.create_task(tunnel(reader, writer)))

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        if b" 20" in answer[:12]:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pass_on(reader, to_server), pass_on(from_server, writer))
        writer.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    outcomes, tasks = list[Any](), list[asyncio.Task[None]]()
    with servers.tls_server() as url:
        port = httpx.URL(url).port
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        proxy = f"http://me:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        config = HttpConfig(proxy=proxy, verify=False)
        for make in (AsyncDefaultWire, stkai.wires.aiohttp):
            async with httpx.AsyncClient(transport=make(config)) as client:
                try:
                    outcomes.append((await client.get("https://service.example/")).text)
                except httpx.TransportError as error:
                    outcomes.append((type(error), str(error)[:6]))
        server.close()
        await asyncio.wait(tasks, timeout=10)
    if answer.startswith(b"HTTP"):
        assert outcomes[1] == outcomes[0]
    else:
        assert outcomes[1][0] is httpx.ConnectError
    assert (len(asked), asked[1]) == (2, asked[0])


async def test_requests_to_this_machine_use_no_proxy(world: World) -> None:
    with QuotaServer(10, 60) as server:
        config = HttpConfig(proxy="http://127.0.0.1:9")
        assert b"nothing at" in await body_of_a_request(server.url, config)


async def test_the_environments_proxy_is_used_but_for_the_hosts_in_no_proxy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Proxy()
    with servers.serve(log.handle) as url:
        monkeypatch.setenv("HTTP_PROXY", url)
        monkeypatch.setenv("NO_PROXY", "direct.invalid")
        assert (await body_of_a_request("http://service.invalid/", HttpConfig())).startswith(b"by proxy")
        for address, config in (
            ("http://direct.invalid/", HttpConfig()),
            ("http://service.invalid/", HttpConfig(trust_env=False)),
        ):
            with pytest.raises(httpx.ConnectError):  # There is no such host.
                await body_of_a_request(address, config)
    assert log.hosts == ["service.invalid"]


@pytest.mark.parametrize("make", [AsyncDefaultWire, stkai.wires.aiohttp], ids=["httpx", "aiohttp"])
@pytest.mark.parametrize(
    ("config", "connections"),
    [({}, 1), ({"max_keepalive_connections": 0}, 3), ({"keepalive_expiry": 0}, 3)],
    ids=["default", "none kept", "expired at once"],
)
async def test_idle_connections_are_kept_as_the_settings_say(
    make: Any, config: dict[str, Any], connections: int, world: World
) -> None:
    with raw_server() as server:
        wire = make(HttpConfig(**config))
        for _ in range(3):
            await (await wire.handle_async_request(httpx.Request("GET", server.url))).aread()
            await asyncio.sleep(0.001)
        await wire.aclose()
    assert server.connections == connections


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"http2": True}, "HTTP/2"),
        ({"proxy": "socks5://127.0.0.1:1"}, "SOCKS"),
        ({"verify": __file__ + ".missing"}, "verify"),
    ],
)
def test_a_config_that_aiohttp_cannot_follow_makes_no_wire(config: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        stkai.wires.aiohttp(HttpConfig.model_construct(**{**HttpConfig().model_dump(), **config}))


def test_what_is_no_config_is_refused() -> None:
    wrong: Any = {"http2": False}
    with pytest.raises(ConfigurationError, match=r"config must be a stkai\.HttpConfig or None"):
        stkai.wires.aiohttp(wrong)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stkai.wires.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"stkai\[aiohttp\]"):
        stkai.wires.aiohttp()


@pytest.mark.worlds("trio")
async def test_trio_is_refused_at_the_first_request(world: World) -> None:
    wire: Any = stkai.wires.aiohttp(HttpConfig())
    with pytest.raises(ConfigurationError, match="trio"):
        await wire.handle_async_request(httpx.Request("GET", "http://127.0.0.1:9/"))


async def test_a_closed_wire_raises(world: World) -> None:
    async with over_aiohttp() as wire:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await wire.handle_async_request(httpx.Request("GET", "http://127.0.0.1:9/"))


def test_the_connections_of_a_loop_end_with_it() -> None:
    wire: Any = stkai.wires.aiohttp(HttpConfig())

    async def once(url: str) -> None:
        await (await wire.handle_async_request(httpx.Request("GET", url))).aread()

    gc.collect()
    with raw_server() as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in (1, 2):
            asyncio.run(once(server.url))
            assert server.connections == number
        gc.collect()


async def test_a_connection_that_the_server_closed_while_the_program_computed_is_not_used_again(
    world: World,
) -> None:
    """The event loop had no chance to notice."""
    with raw_server() as server:
        async with over_aiohttp() as wire:
            post = httpx.Request("POST", server.url)
            for number in range(1, 4):
                assert await (await wire.handle_async_request(post)).aread() == b"body"
                assert server.connections == number
                server.hang_up()
                while server.open:  # Computes: nothing here awaits.
                    time.sleep(0.001)  # noqa: ASYNC251


async def test_a_response_dropped_unread_gives_its_connection_back(world: World) -> None:
    with raw_server() as server:
        async with over_aiohttp(max_connections=1) as wire:
            request = httpx.Request("GET", server.url, extensions={"timeout": {"pool": 2}})
            for _ in range(3):
                await wire.handle_async_request(request)
                gc.collect()
                await asyncio.sleep(0.01)
        assert server.requests == 3


async def test_a_deadline_does_not_shorten_the_read_timeout_of_a_returned_stream(world: World) -> None:
    async def pauses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"Content-Length: 4\r\n\r\nab")
        await asyncio.sleep(0.6)
        writer.write(b"cd")
        writer.close()

    server = await asyncio.start_server(pauses, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with stkai.build_async_client(auth=None, transport=stkai.wires.aiohttp()) as client:
        response = await client.post_stream(url, deadline=0.3, timeout=30)
        assert await response.aread() == b"abcd"
    server.close()


@pytest.mark.parametrize("connects", [True, False], ids=["connects", "fails"])
async def test_a_call_whose_time_is_up_while_it_connects_on_a_busy_loop_is_not_cancelled(
    world: World, connects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit for connecting and the deadline end in the same step of the loop."""
    connect: Any = aiohttp.TCPConnector._create_connection

    async def connects_and_computes(*arguments: Any) -> Any:
        connection = await connect(*arguments)
        time.sleep(0.1)  # noqa: ASYNC251
        try:
            await asyncio.sleep(0)
            if not connects:
                raise aiohttp.ClientOSError
        except BaseException:  # Connecting itself may have taken all the time.
            connection.drop()
            raise
        return connection

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", connects_and_computes)
    with raw_server() as server:
        async with stkai.build_async_client(auth=None, transport=stkai.wires.aiohttp(), retry=None) as client:
            with pytest.raises(stkai.DeadlineExceededError):
                await client.get(server.url, deadline=0.05)
        await world.until(lambda: server.open == 0)


async def test_a_task_cancelled_just_after_it_has_connected_leaves_no_connection_open(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect: Any = aiohttp.TCPConnector._create_connection

    async def connects_and_is_cancelled(*arguments: Any) -> Any:
        connection = await connect(*arguments)
        asyncio.get_running_loop().call_soon(task.cancel)
        return connection

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", connects_and_is_cancelled)
    with raw_server() as server:
        async with over_aiohttp() as wire:
            task = asyncio.ensure_future(wire.handle_async_request(httpx.Request("GET", server.url)))
            with pytest.raises(asyncio.CancelledError):
                await task
            await world.until(lambda: server.open == 0)


async def test_a_body_that_a_task_reads_ends_when_another_task_closes_the_wire(world: World) -> None:
    with raw_server() as server:
        server.answer = lambda _: (SHORT, True)
        async with over_aiohttp() as wire:
            response = await wire.handle_async_request(httpx.Request("GET", server.url))
            reading = asyncio.create_task(response.aread())
            await asyncio.sleep(0.05)
        with pytest.raises(httpx.ReadError, match="closed"):
            await asyncio.wait_for(reading, 10)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("body", [pieces(b"x" * 20_000_000), pieces(*[b"x" * 100_000] * 200)])
async def test_an_upload_ends_when_another_task_closes_the_wire(
    world: World, body: Any, secure: bool
) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        began.set()
        await ended.wait()
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    server = await asyncio.start_server(stall, "127.0.0.1", 0, ssl=context if secure else None)
    url = f"http{'s' * secure}://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with over_aiohttp(verify=False) as wire:
        sending = asyncio.create_task(wire.handle_async_request(httpx.Request("POST", url, content=body())))
        await began.wait()
        await asyncio.sleep(0.05)  # The body fills the buffers.
    with pytest.raises(httpx.ReadError, match="closed"):
        await asyncio.wait_for(sending, 10)
    ended.set()
    server.close()


async def test_a_request_that_waits_for_its_answer_ends_when_another_task_closes_the_wire(
    world: World,
) -> None:
    with raw_server() as server:
        server.answer = lambda _: (b"", True)
        async with over_aiohttp() as wire:
            waiting = asyncio.create_task(wire.handle_async_request(httpx.Request("GET", server.url)))
            await world.until(lambda: server.requests == 1)
        with pytest.raises(httpx.ReadError, match="closed"):
            await asyncio.wait_for(waiting, 10)


async def test_requests_beyond_the_limit_wait_for_a_connection_and_then_fail(world: World) -> None:
    with raw_server() as server:
        async with over_aiohttp(max_connections=1) as wire:
            request = httpx.Request("GET", server.url, extensions={"timeout": {"pool": 0.05}})
            response = await wire.handle_async_request(request)
            with pytest.raises(httpx.PoolTimeout):
                await wire.handle_async_request(request)
            await response.aread()
            await (await wire.handle_async_request(request)).aread()
        assert server.connections == 1


async def test_a_forked_child_leaves_the_connections_of_its_parent_alone(world: World) -> None:
    with raw_server() as server, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside other threads
        request = httpx.Request("GET", server.url)
        async with over_aiohttp() as wire:
            await (await wire.handle_async_request(request)).aread()
            child = os.fork()
            if not child:
                with contextlib.suppress(BaseException):
                    gc.collect()
                os._exit(0)
            await asyncio.to_thread(os.waitpid, child, 0)
            await (await wire.handle_async_request(request)).aread()
        assert server.connections == 1


async def test_each_request_on_a_connection_has_its_own_time_limit_and_a_closed_connection_leaves_no_timer(
    world: World,
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.head()
        await peer.send(OK)
        while await peer.read():
            pass
        peer.close()

    def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.create_task(serve(Peer(reader, writer))))

    def request(seconds: float) -> httpx.Request:
        return httpx.Request("GET", url, extensions={"timeout": {"read": seconds}})

    tasks = list[asyncio.Task[None]]()
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with over_aiohttp() as wire:
        assert await (await wire.handle_async_request(request(600))).aread() == b"body"
        with pytest.raises(httpx.ReadTimeout):
            await wire.handle_async_request(request(LIMIT))
        assert len(tasks) == 1
        assert await (await wire.handle_async_request(request(600))).aread() == b"body"
    await asyncio.gather(*tasks)
    server.close()
    gc.collect()
    assert [found for found in gc.get_objects() if type(found) is Connection] == []


async def test_the_private_parts_of_aiohttp_that_the_wire_uses_exist(world: World) -> None:
    connector = aiohttp.TCPConnector()
    assert callable(connector._create_connection)
    assert callable(connector._factory)
    await connector.close()
    assert callable(aiohttp.StreamReader._read_nowait)
    assert callable(aiohttp.StreamReader._wait)
    assert isinstance(_PARSER.DEBUG, bool)
    assert hasattr(aiohttp.StreamReader(Connection(asyncio.get_running_loop()), 1), "_buffer")
