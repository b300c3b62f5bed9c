"""httpx and httpx2: which of the two a thing belongs to, what serves both, and that neither requires the other."""

import copy
import pickle
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest

import stkai
from stkai import _families
from stkai._families import HTTPX, alike, families, family_of, family_of_wire, of_family
from stkai.testing import FakeClock, QuotaServer, Reset
from stkai.transports import AsyncRetryTransport, RetryTransport, StkCLITransport

from .support import stand_in_cli
from .support.servers import proxy
from .support.world import World

httpx2: Any = pytest.importorskip("httpx2")

PACKAGES: list[Any] = [httpx, httpx2]
BOTH = pytest.mark.parametrize("module", PACKAGES, ids=lambda module: module.__name__)
URL = "https://api.example.com/v1"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_request_and_a_response_belong_to_the_package_that_made_them_whatever_their_module_says() -> None:
    for module in PACKAGES:
        renamed = type("Request", (module.Request,), {"__module__": "an.sdk"})
        assert family_of(module.Request("GET", URL)) == module
        assert family_of(renamed("GET", URL)) == module
        assert family_of(module.Response(200)) == module


def test_a_wire_takes_the_requests_of_its_package_and_a_stack_those_of_its_wire() -> None:
    for module in PACKAGES:
        assert family_of_wire(module.HTTPTransport()) == module
        assert family_of_wire(RetryTransport(RetryTransport(module.HTTPTransport()))) == module
        assert family_of_wire(AsyncRetryTransport(module.AsyncHTTPTransport())) == module
    both = type("Both", (httpx.BaseTransport, httpx2.BaseTransport), {})
    assert family_of_wire(both()) is None


def test_a_package_that_is_not_fully_loaded_is_no_family(monkeypatch: pytest.MonkeyPatch) -> None:
    assert families() == (httpx, httpx2)
    for other in (None, ModuleType("httpx2"), httpx):
        monkeypatch.setitem(sys.modules, "httpx2", other)
        assert families() == (HTTPX,)
        assert alike(httpx.ReadError) == (httpx.ReadError,)
        assert family_of(httpx2.Request("GET", URL)) is httpx


def test_classes_are_matched_by_name_and_others_are_unchanged() -> None:
    assert alike(httpx.ReadError, OSError) == (httpx.ReadError, OSError, httpx2.ReadError)
    own = type("ReadError", (Exception,), {})
    assert alike(own) == (own,)


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (stkai.AuthenticationError("no token", OSError("down")), "TransportError"),
        (stkai.TokenAcquisitionTimeoutError(1.0, 2.0, required=3.0), "TransportError"),
        (stkai.DeadlineExceededError("too late"), "TimeoutException"),
        (httpx.ConnectError("refused"), "ConnectError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_an_adopted_error_keeps_its_class_even_when_copied(error: Exception, base: str) -> None:
    error = copy.copy(error)
    kind, state = type(error), dict(error.__dict__)
    _families.adopt(error, httpx2.Request("GET", URL))
    read_back = pickle.loads(pickle.dumps(error))  # noqa: S301
    for each in (error, copy.copy(error), copy.deepcopy(error), read_back):
        assert isinstance(each, kind)
        assert isinstance(each, getattr(httpx2, base))
        assert type(each).__name__ == kind.__name__
        assert type(each) is type(error)
        assert each.args == error.args
        assert each.__dict__.keys() == state.keys()


def test_an_error_of_the_right_package_is_not_changed() -> None:
    kind = stkai.DeadlineExceededError
    assert of_family(kind, HTTPX) is kind
    assert of_family(OSError, httpx2) is OSError
    error = httpx2.ReadError("reset")
    _families.adopt(error, httpx2.Request("GET", URL))
    assert type(error) is httpx2.ReadError


def test_an_error_of_both_packages_unpickles_without_the_other_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = stkai.TokenAcquisitionTimeoutError(1.0, 2.0, required=3.0)
    _families.adopt(error, httpx2.Request("GET", URL))
    frozen = pickle.dumps(error)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    read_back = pickle.loads(frozen)  # noqa: S301
    assert type(read_back) is stkai.TokenAcquisitionTimeoutError
    assert read_back.retry_after == 1.0


@BOTH
async def test_a_stack_without_a_wire_serves_the_clients_of_either_package(world: World, module: Any) -> None:
    with QuotaServer(auth_required=False) as server:
        build: Any = world.pick(stkai.build_transport, stkai.build_async_transport)
        transport = build(auth=None, rate_limit=None, clock=FakeClock())
        server.fail_with(503)
        server.fail_with(Reset())
        client = world.pick(module.Client, module.AsyncClient)(transport=transport)
        response = await world.call(client.post, server.create_url(), json={})
        await world.close(client)
        assert isinstance(response, module.Response)
        assert response.extensions["stkai"].attempts == 3


async def test_one_stack_serves_both_packages_at_once(world: World) -> None:
    with QuotaServer(auth_required=False) as server:
        build: Any = world.pick(stkai.build_transport, stkai.build_async_transport)
        transport = build(auth=None, rate_limit=None, retry=None, clock=FakeClock())
        for module in PACKAGES * 2:
            client = world.pick(module.Client, module.AsyncClient)(transport=transport)
            assert isinstance(await world.call(client.get, server.url + "/echo"), module.Response)
        await world.close(transport)
        assert server.connections == 2


@BOTH
async def test_the_errors_of_a_stack_are_those_of_the_package_of_the_client(
    world: World, module: Any
) -> None:
    build: Any = world.pick(stkai.build_transport, stkai.build_async_transport)
    limiter = stkai.TokenBucket(1, 60, max_wait_time=1.0)
    with QuotaServer(auth_required=False) as server:
        transport = build(auth=None, rate_limit=limiter, retry=None, clock=FakeClock())
        client = world.pick(module.Client, module.AsyncClient)(transport=transport)
        await world.call(client.post, server.create_url(), json={})
        with pytest.raises(module.TransportError) as caught:
            await world.call(client.post, server.create_url(), json={})
        await world.close(client)
    assert isinstance(caught.value, stkai.TokenAcquisitionTimeoutError)
    assert isinstance(caught.value.request, module.Request)


@BOTH
async def test_a_request_that_the_wire_cannot_read_is_refused_with_the_reason(
    world: World, module: Any
) -> None:
    other = httpx if module is httpx2 else httpx2
    wire = world.pick(other.HTTPTransport, other.AsyncHTTPTransport)()
    build: Any = world.pick(stkai.build_transport, stkai.build_async_transport)
    transport = build(auth=None, rate_limit=None, transport=wire)
    client = world.pick(module.Client, module.AsyncClient)(transport=transport)
    with pytest.raises(
        stkai.ConfigurationError, match=f"wire is for {other.__name__}, but this request is not"
    ):
        await world.call(client.get, URL)
    await world.close(client)


def test_the_clients_of_stkai_refuse_a_wire_of_httpx2_at_once() -> None:
    stack = stkai.StackBuilder([stkai.transports.retry()])
    with pytest.raises(stkai.ConfigurationError, match="on an httpx wire"):
        stkai.HttpClient(stack.build(httpx2.HTTPTransport()))
    with pytest.raises(stkai.ConfigurationError, match="on an httpx wire"):
        stkai.AsyncHttpClient(stack.build_async(httpx2.AsyncHTTPTransport()))


def test_a_wire_of_the_wrong_kind_is_refused_in_either_package() -> None:
    for module in PACKAGES:
        with pytest.raises(stkai.ConfigurationError, match=r"needs an httpx\.BaseTransport"):
            RetryTransport(module.AsyncHTTPTransport())
        with pytest.raises(stkai.ConfigurationError, match=r"needs an httpx\.AsyncBaseTransport"):
            AsyncRetryTransport(module.HTTPTransport())


@BOTH
def test_the_retry_after_of_a_refusal_is_read_although_another_header_is_not_latin(module: Any) -> None:
    refused = module.Response(429, headers=[(b"Retry-After", b"7"), (b"X-Note", "zł".encode())])
    failure = stkai.RetryPolicy().failure_of(None, stkai.ServerSideRateLimitError(refused), NOW)
    assert failure is not None
    assert failure.requested_wait == 7.0


async def test_a_retried_block_is_repeated_after_errors_of_either_package(world: World) -> None:
    for error in (httpx2.ReadTimeout("slow"), httpx.ReadTimeout("slow")):
        runs = 0
        for attempt in stkai.Retrying(clock=FakeClock()):
            with attempt:
                runs += 1
                if runs == 1:
                    raise error
        assert runs == 2
    refusal = httpx2.Response(503, request=httpx2.Request("GET", URL))
    runs = 0
    for attempt in stkai.Retrying(clock=FakeClock()):
        with attempt:
            runs += 1
            if runs == 1:
                refusal.raise_for_status()
    assert runs == 2


def test_stkai_does_not_import_httpx2_and_works_without_it() -> None:
    program = """
import sys, httpx, stkai, stkai.transports
from stkai.testing import QuotaServer
assert "httpx2" not in sys.modules
sys.modules["httpx2"] = None  # as if it were not installed
with QuotaServer(auth_required=False) as server:
    with httpx.Client(transport=stkai.build_transport(auth=None, rate_limit=None)) as client:
        server.fail_with(503)
        assert client.post(server.create_url(), json={}).extensions["stkai"].attempts == 2
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent)


def test_the_cli_wire_answers_either_package_in_its_own_classes() -> None:
    with QuotaServer(auth_required=False) as server, stand_in_cli.installed():
        for module in PACKAGES:
            with module.Client(transport=StkCLITransport()) as client:
                with client.stream("POST", server.create_url(), json={"input_data": "x"}) as response:
                    assert isinstance(response, module.Response)
                    response.read()
                    assert isinstance(response.json(), str)
                with pytest.raises(module.UnsupportedProtocol):
                    client.put(server.create_url())
                server.fail_with(Reset("body"))
                with pytest.raises(module.RemoteProtocolError):
                    client.post(server.create_url(), json={})
                server.fail_with(Reset())
                with pytest.raises(module.NetworkError):
                    client.post(server.create_url(), json={})


async def test_the_settings_apply_to_the_wire_of_either_package(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy() as (url, log):
        monkeypatch.setenv("STKAI_HTTP_PROXY", url)
        build: Any = world.pick(stkai.build_transport, stkai.build_async_transport)
        transport = build(auth=None, rate_limit=None, retry=None)
        for module in PACKAGES:
            client = world.pick(module.Client, module.AsyncClient)(transport=transport)
            answer = await world.call(client.get, "http://api.example.com/v1")
            assert answer.text == "by proxy: http://api.example.com/v1"
        await world.close(transport)
        assert len(log.asked) == 2


# The record of a call


@BOTH
def test_a_responses_record_has_a_type(module: Any) -> None:
    wire = module.MockTransport(lambda request: module.Response(200))
    with module.Client(transport=stkai.build_transport(auth=None, transport=wire)) as client:
        response = client.get("https://api.example.com")
    record = stkai.record(response)
    assert isinstance(record, stkai.CallRecord)
    assert record is response.extensions["stkai"]
    assert record.attempts == 1
    assert stkai.record(SimpleNamespace(http_response=response)) is record  # an SDK's `with_raw_response`
    assert stkai.record(SimpleNamespace(response=response)) is record  # an SDK's stream


@pytest.mark.parametrize(
    "response", [httpx.Response(200), httpx.Response(200, extensions={"stkai": 1}), object()]
)
def test_a_response_of_another_client_has_no_record(response: Any) -> None:
    with pytest.raises(
        stkai.InvalidArgumentError, match="has no CallRecord: it did not pass through a stack"
    ):
        stkai.record(response)
