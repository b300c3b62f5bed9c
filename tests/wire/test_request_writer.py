"""The wire over aiohttp writes what h11 writes, and refuses what h11 refuses."""

import h11
import httpx
from hypothesis import given
from hypothesis import strategies as st

from stkai._wire.request_writer import RequestWriter

Fields = list[tuple[bytes, bytes]]

LEGAL_NAMES = [b"Host", b"host", b"Accept", b"x-own", b"*"]
FRAMING = [b"Content-Length", b"content-length", b"Transfer-Encoding"]
ILLEGAL_NAMES = [b"", b"a b", b"a:", b"a\nb", b"a\r\nb: c", b"\xe9"]
NAMES = st.sampled_from([*LEGAL_NAMES, *FRAMING, *ILLEGAL_NAMES])

LEGAL_VALUES = [b"", b"a", b"a b\tc", b"\xe9", b"a\x80", b"x" * 30]
LENGTHS = [b"4", b"4, 4", b" 4", b"04", b"9" * 21, b"\xb2", b"chunked", b"Chunked", b"gzip"]
ILLEGAL_VALUES = [b" a", b"a ", b"a\n", b"a\r\nb: c", b"a\nb", b"\x00", b"\x7f", b"\x1f"]
VALUES = st.sampled_from([*LEGAL_VALUES, *LENGTHS, *ILLEGAL_VALUES])

LEGAL = st.tuples(st.sampled_from([b"Accept", b"X-a"]), st.sampled_from([b"", b"a b", b"\xe9"]))
FIELDS = st.lists(st.tuples(NAMES, VALUES) | LEGAL, max_size=5)
BODIES = st.lists(st.sampled_from([b"", b"a", b"abcd", b"x" * 300]), max_size=3)


def as_h11(method: str, target: bytes, fields: Fields, body: list[bytes]) -> bytes | str:
    """What h11 writes, or why it refuses to."""
    machine = h11.Connection(h11.CLIENT)
    try:
        events = [h11.Request(method=method.encode(), target=target, headers=fields)]
        return b"".join(
            machine.send(each) or b"" for each in [*events, *map(h11.Data, body), h11.EndOfMessage()]
        )
    except h11.LocalProtocolError as error:
        return str(error)


def as_we_do(method: str, target: bytes, fields: Fields, body: list[bytes]) -> bytes | str:
    request = httpx.Request("GET", "http://a/", headers=fields, extensions={"target": target})
    request.method, request.headers = method, httpx.Headers(fields)
    try:
        writer = RequestWriter(request, None)
        for data in body:
            writer._add(data)
        writer._end()
    except httpx.LocalProtocolError as error:
        return str(error)
    return writer._pending


@given(
    st.sampled_from(["GET", "POST", "a b", "", "G\n", "é"]),
    st.sampled_from([b"/", b"/a?b", b"*", b"", b"/a b", b"/\xe9", b"/\r\n"]),
    FIELDS,
    BODIES,
)
def test_a_request_is_written_or_refused_as_by_h11(
    method: str, target: bytes, fields: Fields, body: list[bytes]
) -> None:
    assert as_we_do(method, target, fields, body) == as_h11(method, target, fields, body)


@given(FIELDS, BODIES)
def test_a_request_with_its_host_first_is_written_or_refused_as_by_h11(
    fields: Fields, body: list[bytes]
) -> None:
    fields = [(b"Host", b"a:1"), *fields]
    assert as_we_do("POST", b"/v1?x", fields, body) == as_h11("POST", b"/v1?x", fields, body)
