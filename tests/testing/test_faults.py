"""QuotaServer with faults: what a client sees of each one, over a real socket."""

import asyncio
import gzip
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx
import pytest

from stkai import ConfigurationError
from stkai.testing import Answer, Edit, Hang, HangUp, QuotaServer, Reset, Slow

pytestmark = pytest.mark.without_auth


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


def ask(http: httpx.Client, server: QuotaServer) -> httpx.Response:
    return http.post(server.chat_url(), json={"user_prompt": "a prompt to answer"})


def ask_for_token(http: httpx.Client, server: QuotaServer) -> httpx.Response:
    form = {"client_id": server.client_id, "client_secret": server.client_secret}
    return http.post(server.token_url, data=form | {"grant_type": "client_credentials"})


def received(http: httpx.Client, server: QuotaServer, **content: Any) -> tuple[httpx.Response, bytes]:
    """The raw bytes of a body that is cut off."""
    chunks: list[bytes] = []

    def collect(answer: httpx.Response) -> None:
        for chunk in answer.iter_raw():
            chunks.append(chunk)  # noqa: PERF402

    content = {"user_prompt": "one two three"} | content
    with http.stream("POST", server.chat_url(), json=content) as answer, pytest.raises(httpx.ReadError):
        collect(answer)
    return answer, b"".join(chunks)


# Which request meets which fault


def test_faults_apply_one_per_request_and_in_order(http: httpx.Client, server: QuotaServer) -> None:
    server.fail_with(503, None, 429, 599)
    assert [ask(http, server).status_code for _ in range(6)] == [503, 200, 429, 599, 200, 200]
    assert [record.status for record in server.requests] == [503, 200, 429, 599, 200, 200]


def test_a_fault_applies_to_the_next_request_to_its_path(http: httpx.Client, server: QuotaServer) -> None:
    server.fail_with(500, path="/echo")
    server.fail_with(502)
    assert ask_for_token(http, server).status_code == 200
    assert ask(http, server).status_code == 502
    assert server.faults_left == 1
    assert http.get(server.url + "/echo").status_code == 500
    assert server.faults_left == 0


def test_any_faults_can_be_queued_together(http: httpx.Client, server: QuotaServer) -> None:
    server.fail_with(None, Answer(418), Hang(0.0), Slow(5, 0.0), HangUp(), Edit({"message": "x"}), Reset())
    assert server.faults_left == 7
    assert [ask(http, server).status_code for _ in range(5)] == [200, 418, 200, 200, 200]
    assert ask(http, server).json()["message"] == "x"
    with pytest.raises(httpx.ReadError):
        ask(http, server)


# Answers


def test_an_answer_may_have_any_headers_and_body(http: httpx.Client, server: QuotaServer) -> None:
    server.fail_with(Answer(503, headers={"Retry-After": "7"}))
    server.fail_with(
        Answer(
            429, headers=[("retry-after", "1"), ("Retry-After", "2"), ("Date", "yesterday")], body="häuser"
        )
    )
    server.fail_with(Answer(200, headers={"content-type": "text/html"}, body=b"\x00" * 100_000))
    server.fail_with(Answer(500, headers={"Content-Type": "text/plain"}))
    first, second, third, fourth = (ask(http, server) for _ in range(4))
    assert first.headers["retry-after"] == "7"
    assert first.headers["content-type"] == "application/json"
    assert first.json() == {"error": "fault", "error_description": "Service Unavailable"}
    assert second.headers.get_list("retry-after") == ["1", "2"]
    assert second.headers.get_list("date") == ["yesterday"]
    assert second.content == "häuser".encode()
    assert (third.status_code, len(third.content)) == (200, 100_000)
    assert fourth.headers.get_list("content-type") == ["text/plain"]


def test_an_answer_without_content_has_none(http: httpx.Client, server: QuotaServer) -> None:
    server.fail_with(204, 304)
    assert [ask(http, server).content for _ in range(2)] == [b"", b""]


def test_faults_that_replace_the_service_use_no_quota(http: httpx.Client) -> None:
    with QuotaServer(max_requests=1, time_window=3600, auth_required=False) as server:
        server.fail_with(503)
        server.fail_with(Reset())
        assert ask(http, server).status_code == 503
        with pytest.raises(httpx.ReadError):
            ask(http, server)
        assert [ask(http, server).status_code for _ in range(2)] == [200, 429]


def test_faults_that_affect_only_the_answer_use_quota(http: httpx.Client) -> None:
    with QuotaServer(max_requests=1, time_window=3600, auth_required=False) as server:
        server.fail_with(Reset("body"))
        received(http, server)
        assert ask(http, server).status_code == 429


# Resets


@pytest.mark.parametrize("at", ["start", "headers", "body"])
def test_a_reset_is_not_a_clean_close(http: httpx.Client, server: QuotaServer, at: Any) -> None:
    server.fail_with(Reset(at))
    with pytest.raises(httpx.ReadError, match="reset by peer"):
        ask(http, server)
    assert ask(http, server).status_code == 200
    assert server.connections == 2
    assert server.requests[0].status == (200 if at == "body" else None)


def test_a_program_that_runs_on_uvloop_is_answered_and_cut_off_like_any_other(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`uvloop.install()` makes `asyncio.run` use it."""
    uvloop = pytest.importorskip("uvloop")

    def run(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)

    monkeypatch.setattr(asyncio, "run", run)
    with QuotaServer() as server:
        server.fail_with(Reset("headers"))
        with pytest.raises(httpx.ReadError, match="reset by peer"):
            ask(http, server)
        assert ask_for_token(http, server).status_code == 200


@pytest.mark.parametrize("after", [0, 5, 10_000])
def test_a_reset_in_the_headers_never_completes_them(
    http: httpx.Client, server: QuotaServer, after: int
) -> None:
    server.fail_with(Reset("headers", after=after))
    with pytest.raises(httpx.ReadError):
        ask(http, server)


@pytest.mark.parametrize(("after", "length"), [(0, 0), (5, 5), (10_000, -1)])
@pytest.mark.parametrize("framing", [None, "length", "chunked"])
def test_a_reset_in_the_body_comes_after_the_bytes_asked_for(
    http: httpx.Client, server: QuotaServer, after: int, length: int, framing: Any
) -> None:
    whole = http.post(server.chat_url(), json={"user_prompt": "one two three"}).content
    server.fail_with(Reset("body", after=after, framing=framing))
    answer, body = received(http, server)
    assert body == whole[:length]
    assert ("content-length" in answer.headers) == (framing != "chunked")
    assert (answer.headers.get("transfer-encoding") == "chunked") == (framing == "chunked")


def test_a_reset_in_a_gzip_body_truncates_the_stream(http: httpx.Client, server: QuotaServer) -> None:
    server.fail_with(Reset("body", after=20, framing="gzip"))
    answer, body = received(http, server)
    assert answer.headers["content-encoding"] == "gzip"
    assert len(body) == 20
    with pytest.raises(EOFError):
        gzip.decompress(body)


@pytest.mark.parametrize("framing", [None, "length"])
def test_a_reset_in_a_stream_of_events_leaves_the_first_of_them(
    http: httpx.Client, server: QuotaServer, framing: Any
) -> None:
    server.fail_with(Reset("body", after=36, framing=framing))
    answer, body = received(http, server, streaming=True)
    assert body == b'data: {"message": "one "}\n\ndata: {"m'
    assert ("content-length" in answer.headers) == (framing == "length")


@pytest.mark.parametrize("framing", [None, "chunked", "gzip"])
def test_a_reset_at_the_end_comes_after_the_whole_answer(
    http: httpx.Client, server: QuotaServer, framing: Any
) -> None:
    server.fail_with(Reset("end", framing=framing))
    answer = ask(http, server)
    assert answer.json()["message"] == "a prompt to answer"
    assert "connection" not in answer.headers
    http.close()
    with httpx.Client() as other:
        assert ask(other, server).status_code == 200


# Slow answers, and closed connections


@pytest.mark.parametrize("announced", [True, False])
def test_a_connection_may_be_closed_after_the_answer(server: QuotaServer, announced: bool) -> None:
    server.fail_with(HangUp(announced=announced))
    for _ in range(2):
        with httpx.Client() as client:
            answer = ask(client, server)
            assert answer.json()["message"] == "a prompt to answer"
    assert [record.connection for record in server.requests] == [1, 2]
    server.fail_with(HangUp(announced=announced))
    with httpx.Client() as client:
        assert (ask(client, server).headers.get("connection") == "close") == announced


def test_a_connection_announced_to_close_is_not_reused(http: httpx.Client, server: QuotaServer) -> None:
    server.fail_with(*[HangUp()] * 3)
    for _ in range(4):
        ask(http, server)
    assert server.connections == 4


def test_slow_bytes_arrive_one_piece_at_a_time(http: httpx.Client, server: QuotaServer) -> None:
    whole = ask(http, server).content
    server.fail_with(Slow(30, 0.01))
    with http.stream("POST", server.chat_url(), json={"user_prompt": "a prompt to answer"}) as answer:
        pieces = list(answer.iter_raw())
    assert b"".join(pieces) == whole
    assert len(pieces) > 1


def test_pieces_without_a_byte_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="size must be a positive whole number"):
        Slow(0, 0.01)


def test_a_server_that_hangs_triggers_the_clients_timeout(http: httpx.Client, server: QuotaServer) -> None:
    server.fail_with(Hang(60.0))
    with pytest.raises(httpx.ReadTimeout):
        http.post(server.chat_url(), timeout=0.05)
    assert server.requests[0].status is None


# Tokens


def test_the_token_endpoint_may_fail_with_a_status(http: httpx.Client, server: QuotaServer) -> None:
    server.fail_with(500, 429, path=server.token_path)
    assert ask(http, server).status_code == 200
    assert [ask_for_token(http, server).status_code for _ in range(3)] == [500, 429, 200]


@pytest.mark.parametrize("fields", [{"access_token": None}, {"expires_in": None}, {"expires_in": -1}])
def test_the_token_endpoint_may_answer_nonsense(
    http: httpx.Client, server: QuotaServer, fields: dict[str, Any]
) -> None:
    usual = ask_for_token(http, server).json()
    server.fail_with(Edit(fields), path=server.token_path)
    answer = ask_for_token(http, server).json()
    changed = {name: value for name, value in fields.items() if value is not None}
    assert answer.keys() == (usual.keys() - fields.keys()) | changed.keys()
    assert answer.items() >= changed.items()


def test_a_refusal_is_not_edited(http: httpx.Client, server: QuotaServer) -> None:
    server.fail_with(Edit({"error": None}))
    assert http.get(server.callback_url("nonsense")).json()["error"] == "not_found"


def test_an_answer_that_is_no_json_object_is_not_edited(http: httpx.Client, server: QuotaServer) -> None:
    server.fail_with(Edit({"a": 1}))
    created = http.post(server.create_url(), json={})
    assert (created.status_code, type(created.json())) == (200, str)


def test_the_token_endpoint_may_redirect(http: httpx.Client, server: QuotaServer) -> None:
    server.fail_with(Answer(307, headers={"location": server.url + "/echo"}), path=server.token_path)
    assert ask_for_token(http, server).headers["location"] == server.url + "/echo"


@pytest.mark.parametrize(
    "fault",
    ["503", [503, 503], 429.0, True, 99, 600, Reset, httpx.Response(503)],
    ids=lambda each: repr(each)[:20],
)
def test_what_is_no_fault_is_refused_when_it_is_queued(fault: Any) -> None:
    server = QuotaServer()
    with pytest.raises(ConfigurationError, match="a status"):
        server.fail_with(503, fault)
    assert server.faults_left == 0


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Reset("boddy"), "at"),  # type: ignore[arg-type]
        (lambda: Reset("body", after=-1), "after"),
        (lambda: Reset("body", framing="gz"), "framing"),  # type: ignore[arg-type]
        (lambda: Answer("503"), "status"),  # type: ignore[arg-type]
        (lambda: Hang(-1), "seconds"),
        (lambda: Slow(1, "0.1"), "every"),  # type: ignore[arg-type]
    ],
)
def test_a_fault_that_cannot_be_is_refused_by_name(make: Callable[[], object], name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        make()
