"""QuotaServer without faults: it answers as StackSpot AI does, counts, remembers, and leaves nothing behind."""

import asyncio
import gc
import math
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from stkai import ClientCredentialsAuthProvider
from stkai._errors import ConfigurationError
from stkai.testing import FakeClock, Hang, QuotaServer, Slow

from ..support.threads import own_threads


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(600.0)


def credentials(server: QuotaServer, **changes: str) -> dict[str, str]:
    given = {
        "client_id": server.client_id,
        "client_secret": server.client_secret,
        "grant_type": "client_credentials",
    }
    return given | changes


def sign(http: httpx.Client, server: QuotaServer) -> None:
    answer = http.post(server.token_url, data=credentials(server)).json()
    http.headers["authorization"] = f"{answer['token_type']} {answer['access_token']}"


# Tokens


def test_each_token_is_new_and_has_a_lifetime(http: httpx.Client) -> None:
    with QuotaServer(token_lifetime=300) as server:
        answers = [http.post(server.token_url, data=credentials(server)) for _ in range(3)]
        assert server.token_requests == 3
    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[0].json().keys() == {"access_token", "token_type", "expires_in"}
    assert answers[0].json()["expires_in"] == 300
    assert answers[0].headers["cache-control"] == "no-store"
    assert len({answer.json()["access_token"] for answer in answers}) == 3


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"client_id": "someone-else"}, 401, "invalid_client"),
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": ""}, 400, "unsupported_grant_type"),
    ],
)
def test_a_token_request_is_refused_as_rfc_6749_says(
    http: httpx.Client, changes: dict[str, str], status: int, error: str
) -> None:
    with QuotaServer() as server:
        answer = http.post(server.token_url, data=credentials(server, **changes))
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert "error_description" in answer.json()


def test_credentials_may_come_as_basic_authentication(http: httpx.Client) -> None:
    with QuotaServer(client_secret="s 3:c+ré%t") as server:
        arguments = server.client_id, server.client_secret, server.token_url
        assert ClientCredentialsAuthProvider(*arguments, client_auth="basic").get_access_token()
        for wrong in ("dGVzdC1jbGllbnQ6d3Jvbmc=", "no base64", "/w=="):
            headers = {"authorization": f"Basic {wrong}"}
            answer = http.post(server.token_url, data={"grant_type": "client_credentials"}, headers=headers)
            assert answer.status_code == 401


def test_the_api_requires_a_valid_token(http: httpx.Client, clock: FakeClock) -> None:
    with QuotaServer(clock=clock, token_lifetime=300) as server:
        refused = http.post(server.create_url())
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Bearer ")
        for authorization in ("Bearer nonsense", "Basic abc", "nonsense"):
            assert http.post(server.create_url(), headers={"authorization": authorization}).status_code == 401

        sign(http, server)
        assert http.post(server.create_url()).status_code == 200
        clock.advance(299.0)
        assert http.post(server.create_url()).status_code == 200
        clock.advance(1.0)
        assert http.post(server.create_url()).status_code == 401

        sign(http, server)
        server.revoke_tokens()
        assert http.post(server.create_url()).status_code == 401


def test_the_servers_environment_variables_configure_a_client(http: httpx.Client) -> None:
    with QuotaServer(client_id="me", client_secret="mine") as server:
        assert server.env() == {
            "STKAI_AUTH_CLIENT_ID": "me",
            "STKAI_AUTH_CLIENT_SECRET": "mine",
            "STKAI_AUTH_TOKEN_URL": server.url + server.token_path,
        }


# The API


def test_an_execution_completes_after_some_polls(http: httpx.Client) -> None:
    with QuotaServer(polls_until_done=2) as server:
        sign(http, server)
        created = http.post(server.create_url("my-command"), json={"input_data": {"a": 1}})
        assert isinstance(created.json(), str)
        polls = [http.get(server.callback_url(created.json())).json() for _ in range(4)]
    assert [poll["progress"]["status"] for poll in polls] == ["RUNNING", "RUNNING", "COMPLETED", "COMPLETED"]
    shares = [poll["progress"]["execution_percentage"] for poll in polls]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert [poll["result"] for poll in polls] == [None, None, {"a": 1}, {"a": 1}]
    assert {poll["execution_id"] for poll in polls} == {created.json()}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]"])
def test_an_execution_without_a_json_object_has_no_result(http: httpx.Client, content: bytes) -> None:
    with QuotaServer(auth_required=False, polls_until_done=0) as server:
        execution_id = http.post(server.create_url(), content=content).json()
        assert http.get(server.callback_url(execution_id)).json()["result"] is None


def test_an_agent_echoes_the_prompt(http: httpx.Client) -> None:
    with QuotaServer(auth_required=False) as server:
        answer = http.post(server.chat_url("bob"), json={"user_prompt": "one two"}).json()
    assert answer["message"] == "one two"
    assert answer["stop_reason"] == "stop"
    assert answer["tokens"] == {"user": 2, "enrichment": 0, "output": 2}


def test_an_agent_streams_events(http: httpx.Client) -> None:
    with QuotaServer(auth_required=False) as server:
        content = {"user_prompt": "one two  three", "streaming": True}
        with http.stream("POST", server.chat_url(), json=content) as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            events = [httpx.Response(200, text=line[6:]).json() for line in answer.iter_lines() if line]
    assert "".join(event["message"] for event in events) == "one two  three"
    assert len(events) == 4
    assert [event.get("stop_reason") for event in events] == [None, None, None, "stop"]


def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_the_connection() -> None:
    body = b'{"user_prompt": "one two", "streaming": true}'
    with QuotaServer(auth_required=False) as server:
        url = httpx.URL(server.chat_url())
        with socket.create_connection((url.host, url.port), timeout=10) as connection:
            connection.sendall(
                b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % (url.raw_path, len(body)) + body
            )
            head, _, events = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.split()[1] == b"200"
    assert [line[:5] for line in events.splitlines() if line] == [b"data:"] * 3


def test_the_echo_returns_the_request_as_received(http: httpx.Client) -> None:
    with QuotaServer() as server:
        text = http.put(
            server.url + "/echo?a=1&b=%20", content="häuser", headers=[("X-Two", "1"), ("X-Two", "2")]
        )
    echo = text.json()
    assert (echo["method"], echo["path"], echo["query"]) == ("PUT", "/echo", "a=1&b=%20")
    assert [value for name, value in echo["headers"] if name == "x-two"] == ["1", "2"]
    assert echo["body"] == "häuser"


def test_an_unknown_path_is_not_found(http: httpx.Client) -> None:
    with QuotaServer(auth_required=False) as server:
        assert http.get(server.url).status_code == 404
        assert http.get(server.callback_url("nonsense")).status_code == 404
        wrong = http.get(server.create_url())
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("latency", [0.01, (0.0, 0.01)])
def test_latency_does_not_change_answers(http: httpx.Client, latency: float | tuple[float, float]) -> None:
    with QuotaServer(auth_required=False, latency=latency) as server:
        assert http.post(server.create_url()).status_code == 200


# The quota


@pytest.mark.parametrize("kind", ["fixed", "sliding"])
def test_only_accepted_posts_count(http: httpx.Client, clock: FakeClock, kind: Any) -> None:
    with QuotaServer(max_requests=2, time_window=60.0, kind=kind, clock=clock) as server:
        assert http.post(server.create_url()).status_code == 401
        sign(http, server)
        execution_id = http.post(server.create_url()).json()
        for _ in range(5):
            assert http.get(server.callback_url(execution_id)).status_code == 200
            assert http.post(server.url + "/echo").status_code == 200
        assert http.post(server.chat_url(), json={}).status_code == 200
        for _ in range(5):
            assert http.post(server.create_url()).status_code == 429
        clock.advance(60.0)
        assert http.post(server.create_url()).status_code == 200
        assert server.count(status=429) == 5


@pytest.mark.no_cover
def test_without_a_quota_nothing_is_refused(http: httpx.Client) -> None:
    with QuotaServer(auth_required=False) as server:
        assert server.quota is None
        assert {http.post(server.create_url()).status_code for _ in range(100)} == {200}


@pytest.mark.parametrize(("style", "expected"), [("true", "50"), (None, None), (2.5, "2.5"), (0, "0")])
def test_a_refusal_says_when_to_retry(
    http: httpx.Client, clock: FakeClock, style: Any, expected: str | None
) -> None:
    clock.advance(10.25)
    with QuotaServer(1, 60.0, retry_after=style, clock=clock, auth_required=False) as server:
        refused = [http.post(server.create_url()) for _ in range(2)][1]
    assert refused.status_code == 429
    assert refused.json()["error"] == "too_many_requests"
    assert refused.headers.get("retry-after") == expected


def test_a_refusal_may_give_retry_after_as_a_date_relative_to_its_own(http: httpx.Client) -> None:
    clock = FakeClock(10.25, epoch=datetime(2020, 1, 1, 12, tzinfo=UTC))
    with QuotaServer(1, 60.0, retry_after="date", clock=clock, auth_required=False) as server:
        refused = [http.post(server.create_url()) for _ in range(2)][1]
    assert refused.headers["date"] == "Wed, 01 Jan 2020 12:00:00 GMT"
    assert parsedate_to_datetime(refused.headers["retry-after"]) == datetime(
        2020, 1, 1, 12, 0, 50, tzinfo=UTC
    )


# What it remembers


def test_the_server_records_every_request(http: httpx.Client, clock: FakeClock) -> None:
    with QuotaServer(clock=clock) as server:
        sign(http, server)
        clock.advance(1.0)
        http.post(server.create_url("x"), json=1, params={"q": "1"})
        http.get(server.url + "/none")
        token, create, missing = server.requests
        assert (token.authorization, token.header("Content-Type")) == (
            None,
            "application/x-www-form-urlencoded",
        )
        assert (create.time, create.method, create.query, create.body) == (601.0, "POST", "q=1", b"1")
        assert create.path == "/v1/quick-commands/create-execution/x"
        assert create.authorization == http.headers["authorization"]
        assert (create.status, missing.status) == (200, 404)
        assert server.count() == 3
        assert server.count(path="/v1", method="POST", status=200) == 1
        assert server.count(method="PUT") == 0
        assert repr(server) == f"<QuotaServer {server.url}, 3 requests>"
        server.forget_requests()
        assert server.requests == []


def test_a_kept_connection_is_counted_once(http: httpx.Client) -> None:
    with QuotaServer() as server:
        for _ in range(3):
            http.get(server.url + "/echo")
        assert server.connections == 1
        httpx.get(server.url + "/echo")
        assert server.connections == 2
        assert [record.connection for record in server.requests] == [1, 1, 1, 2]


# Starting and closing


def test_a_closed_server_leaves_no_thread_or_socket(http: httpx.Client) -> None:
    with own_threads() as running:
        server = QuotaServer(auth_required=False)
        assert repr(server) == "<QuotaServer not started, 0 requests>"
        assert server.start() is server
        assert server.start() is server
        port = httpx.URL(server.url).port
        assert port is not None
        http.get(server.url + "/echo")
        (thread,) = running()
        assert thread.startswith("QuotaServer: ")
        server.close()
        server.close()
        assert running() == []
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass
    with pytest.raises(RuntimeError, match="the server is not running"):
        _ = server.url
    gc.collect()  # anything left open would warn now


LEAVE_IT_OPEN = """
import httpx
from stkai.testing import QuotaServer

url = QuotaServer().start().url
server = QuotaServer().start()
print(httpx.get(f"{url}/echo").status_code, httpx.get(f"{server.url}/echo").status_code)
"""


def test_a_program_that_leaves_a_server_open_ends_all_the_same() -> None:
    # No fork, which would end without what an interpreter does at its end.
    program = [sys.executable, "-c", LEAVE_IT_OPEN]
    assert subprocess.run(program, capture_output=True, check=True, timeout=60).stdout == b"200 200\n"


def test_a_restarted_server_keeps_its_records(http: httpx.Client) -> None:
    server = QuotaServer()
    for _ in range(2):
        with server:
            http.get(server.url + "/echo")
    assert server.count() == 2
    assert server.connections == 2


def test_closing_the_server_aborts_requests_in_flight() -> None:
    server = QuotaServer(auth_required=False).start()
    server.fail_with(Hang(60.0))
    server.fail_with(Slow(1, 60.0))
    errors: list[Exception] = []

    def ask() -> None:
        try:
            httpx.post(server.create_url(), timeout=30)
        except httpx.HTTPError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    while server.faults_left:
        pass
    server.close()
    for thread in threads:
        thread.join(5)
    assert len(errors) == 2


@pytest.mark.no_cover
def test_the_server_counts_exactly_with_many_clients() -> None:
    async def main() -> list[int]:
        with QuotaServer(max_requests=30, time_window=3600, kind="sliding", auth_required=False) as server:
            async with httpx.AsyncClient(limits=httpx.Limits(max_connections=50)) as client:
                answers = await asyncio.gather(*(client.post(server.create_url()) for _ in range(100)))
        return [answer.status_code for answer in answers]

    statuses = asyncio.run(main())
    assert (statuses.count(200), statuses.count(429)) == (30, 70)


def test_a_missing_aiohttp_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "stkai.testing._app", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConfigurationError, match=r'pip install "stkai\[testing\]"'):
        QuotaServer().start()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_requests": 0}, "max_requests must be at least 1, not 0"),
        ({"max_requests": 1, "time_window": 0}, "time_window must be a positive number"),
        ({"kind": "leaky"}, "kind must be one of 'fixed', 'sliding', 'bucket', not 'leaky'"),
        ({"retry_after": "soon"}, "retry_after, unless a number, must be one of 'true', 'date', None"),
        ({"retry_after": -1.0}, "retry_after must be a non-negative number of seconds"),
        ({"latency": -0.1}, "latency must be a non-negative number of seconds, not -0.1"),
        ({"latency": (0.0, math.nan)}, "latency must be a non-negative number of seconds, not nan"),
        ({"token_lifetime": "60"}, "token_lifetime must be a non-negative number of seconds, not '60'"),
        ({"polls_until_done": -1}, "polls_until_done must be a non-negative whole number, not -1"),
    ],
)
def test_invalid_options_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        QuotaServer(**arguments)
