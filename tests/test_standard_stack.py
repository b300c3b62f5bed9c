"""`build_client` and its like: from arguments and settings to the standard stack."""

import logging
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

import stkai
from stkai import STKAI, AimdLimiter, BearerAuth, RetryPolicy, StackBuilder, TokenBucket
from stkai._standard import AuthChoice
from stkai.testing import FakeClock, QuotaServer
from stkai.transports import Answer, StkCLITransport, Turn, adaptive, auth, token_bucket
from stkai.transports._limits.pace.quota import LearnedRate
from stkai.transports._limits.saved_rate import SavedRate

from .support import stand_in_cli
from .support.world import World

URL = "https://api.example.com/v1/things"


class Provider(stkai.AuthProvider):
    def get_access_token(self) -> str:
        return "the-token"


@pytest.fixture
def cli() -> Iterator[Any]:
    """StackSpot CLI is installed."""
    with stand_in_cli.installed() as module:
        yield module


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STKAI_AUTH_CLIENT_ID", "the-client")
    monkeypatch.setenv("STKAI_AUTH_CLIENT_SECRET", "the-secret")


def transport_of(world: World, **options: Any) -> Any:
    build: Any = stkai.build_async_transport if world.is_async else stkai.build_transport
    return build(**options)


def client_of(world: World, **options: Any) -> Any:
    build: Any = stkai.build_async_client if world.is_async else stkai.build_client
    return build(**options)


def layer(transport: Any, name: str) -> Any:
    """The layer of that name in a stack."""
    while transport.name != name:
        transport = transport.inner
    return transport


def wire_of(transport: Any) -> Any:
    while hasattr(transport, "inner"):
        transport = transport.inner
    return transport


# What a live client shows


async def test_the_repr_of_a_live_client_shows_what_its_limiter_has_found(world: World) -> None:
    wire = world.wire(200, 200, 200, 200, 200, httpx.Response(429, headers={"Retry-After": "30"}))
    client = client_of(world, auth=None, retry=None, rate_limit="adaptive", transport=wire, clock=FakeClock())
    assert repr(client).endswith(" adaptive > wire, AimdLimiter(quota not found yet, rate=5)>")
    for _ in range(5):
        await world.call(client.post, URL, data={})
    with pytest.raises(stkai.ServerSideRateLimitError):
        await world.call(client.post, URL, data={})
    assert "adaptive > wire, AimdLimiter(found: time_window=30, rate=" in repr(client)
    await world.close(client)


async def test_the_repr_of_a_stack_shows_the_limiters_inside_it(world: World) -> None:
    transport = transport_of(world, auth=None, rate_limit=TokenBucket(10, 60), transport=world.wire())
    assert repr(transport).endswith("retry > token_bucket > wire, TokenBucket(10, 60, burst=10)>")
    assert str(transport) == "retry > token_bucket > wire"


# From arguments and variables


async def test_without_settings_a_stack_has_retry_and_no_limiter(world: World) -> None:
    transport = transport_of(world, auth=Provider(), transport=world.wire())
    assert str(transport) == "retry > auth > wire"
    policy = layer(transport, "retry").policy
    assert repr(policy) == repr(RetryPolicy())


async def test_a_stack_with_everything_turned_off_still_keeps_deadlines_and_attaches_records(
    world: World,
) -> None:
    wire = world.wire(200, httpx.ReadTimeout("slow"))
    transport = transport_of(world, auth=None, retry=None, rate_limit=None, transport=wire)
    assert str(transport) == "call > wire"
    mounted = world.client(transport)
    response = await world.call(mounted.get, URL)
    assert response.extensions["stkai"].attempts == 1
    with pytest.raises(stkai.ConfigurationError, match=r"must be a stkai\.RequestOptions"):
        await world.call(mounted.get, URL, extensions={"stkai": {"deadline": 1.0}})
    with pytest.raises(stkai.DeadlineExceededError):
        await world.call(mounted.get, URL, extensions={"stkai": stkai.RequestOptions(deadline=1e-9)})
    assert len(wire.requests) == 1


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"RATE_LIMIT_ENABLED": "true"}, "retry > auth > token_bucket > wire"),
        ({"RATE_LIMIT_ENABLED": "true", "RATE_LIMIT_STRATEGY": "adaptive"}, "retry > auth > adaptive > wire"),
        ({"RATE_LIMIT_STRATEGY": "adaptive"}, "retry > auth > wire"),
        ({"RETRY_ENABLED": "false"}, "auth > wire"),
    ],
)
@pytest.mark.usefixtures("credentials")
async def test_variables_select_the_layers(
    world: World, variables: dict[str, str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"STKAI_{name}", value)
    assert str(transport_of(world, transport=world.wire())) == shown
    assert str(client_of(world, transport=world.wire()).transport) == shown
    assert str(StackBuilder.standard(STKAI.config)) == shown
    assert str(StackBuilder.standard()) == shown


@pytest.mark.usefixtures("credentials")
async def test_variables_set_the_numbers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RATE_LIMIT_ENABLED": "1",
        "RATE_LIMIT_MAX_REQUESTS": "7",
        "RATE_LIMIT_TIME_WINDOW": "3.5",
        "RATE_LIMIT_MAX_WAIT_TIME": "unlimited",
        "RETRY_MAX_RETRIES": "9",
        "RETRY_RETRY_UNKNOWN": "false",
        "AUTH_TOKEN_URL": "https://idm.example.com/token",
        "AUTH_ORIGINS": "https://api.example.com",
    }.items():
        monkeypatch.setenv(f"STKAI_{name}", value)
    transport = transport_of(world, transport=world.wire())
    bucket, policy, bearer = (layer(transport, name).policy for name in ("token_bucket", "retry", "auth"))
    assert (bucket.max_requests, bucket.time_window, bucket.max_wait_time) == (7, 3.5, None)
    assert (policy.max_retries, policy.retry_unknown) == (9, False)
    assert bearer.provider.token_url == "https://idm.example.com/token"
    assert repr(bearer.origins) == repr(BearerAuth(Provider(), "https://api.example.com").origins)


async def test_a_warm_start_reaches_the_adaptive_limiter_only(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    SavedRate("key").write(LearnedRate(50.0, 30.0), datetime.now(UTC))
    monkeypatch.setenv("STKAI_RATE_LIMIT_WARM_START", "key")
    options = {"auth": None, "transport": world.wire()}
    assert str(transport_of(world, **options)) == "retry > wire"
    warm = layer(transport_of(world, rate_limit="adaptive", **options), "adaptive").policy
    assert (warm.rate, warm.window) == (pytest.approx(50.0), 30.0)
    config = stkai.RateLimitConfig(strategy="adaptive", max_requests=6000, warm_start="key")
    assert layer(transport_of(world, rate_limit=config, **options), "adaptive").policy.rate == warm.rate
    with pytest.raises(
        stkai.ConfigurationError, match=r"is for the strategy 'adaptive'.*leave warm_start out"
    ):
        transport_of(world, rate_limit="token_bucket", **options)
    monkeypatch.setenv("STKAI_RATE_LIMIT_ENABLED", "true")
    STKAI.reset()
    with pytest.raises(stkai.ConfigurationError, match="STKAI_RATE_LIMIT_WARM_START"):
        transport_of(world, **options)


async def test_factors_reach_the_adaptive_limiter_which_keeps_its_tuned_law_without_them(
    world: World,
) -> None:
    STKAI.configure(rate_limit={"penalty_factor": 0.5, "recovery_factor": 0.1, "min_rate_floor": 0.2})
    plain = layer(
        transport_of(world, auth=None, rate_limit="adaptive", transport=world.wire()), "adaptive"
    ).policy
    STKAI.reset()
    tuned = layer(
        transport_of(world, auth=None, rate_limit="adaptive", transport=world.wire()), "adaptive"
    ).policy
    turn = Turn()
    assert plain.ask(turn, 0.0) == 0.0
    refusal = httpx.Response(429, headers={"Retry-After": "0"})
    plain.learn(turn, Answer(0.0, 1.0, refusal, None, FakeClock().utcnow, 0.0))
    assert plain.rate == pytest.approx(0.5 * 100 / 60)
    assert repr(tuned) == repr(AimdLimiter())
    assert (tuned.max_requests, tuned.time_window) == (None, None)


@pytest.mark.parametrize("name", ["token_bucket", "adaptive"])
async def test_a_strategy_given_by_name_uses_the_numbers_in_the_settings(world: World, name: Any) -> None:
    STKAI.configure(rate_limit={"max_requests": 7, "time_window": 3.5})
    limiter = layer(transport_of(world, auth=None, rate_limit=name, transport=world.wire()), name).policy
    assert (limiter.max_requests, limiter.time_window) == (7, 3.5)


async def test_a_config_needs_no_other_settings(world: World) -> None:
    config = stkai.RateLimitConfig(strategy="adaptive", max_requests=3, time_window=2.0, max_wait_time=None)
    limiter = layer(
        transport_of(world, auth=None, rate_limit=config, transport=world.wire()), "adaptive"
    ).policy
    assert (limiter.max_requests, limiter.time_window, limiter.max_wait_time) == (3, 2.0, None)


def test_a_policy_object_is_shared_by_a_sync_and_an_async_stack() -> None:
    for limiter, name in ((TokenBucket(1, 1), "token_bucket"), (AimdLimiter(1, 1), "adaptive")):
        sync = stkai.build_client(auth=None, rate_limit=limiter)
        asynchronous = stkai.build_async_client(auth=None, rate_limit=limiter)
        assert layer(sync.transport, name).policy is limiter
        assert layer(asynchronous.transport, name).policy is limiter


async def test_a_limiter_given_by_name_is_created_for_each_stack(world: World) -> None:
    one, other = (
        layer(
            transport_of(world, auth=None, rate_limit="adaptive", transport=world.wire()), "adaptive"
        ).policy
        for _ in range(2)
    )
    assert one is not other


async def test_clock_listener_and_randomness_reach_every_layer(world: World) -> None:
    clock, events = FakeClock(), list[stkai.Event]()
    transport = transport_of(
        world,
        auth=Provider(),
        rate_limit="adaptive",
        transport=world.wire(),
        clock=clock,
        listener=[events.append],
        random=lambda: 0.5,
    )
    for name in ("retry", "auth", "adaptive"):
        context = layer(transport, name).context
        assert (context.clock, context.listener, context.random()) == (clock, events.append, 0.5)


async def test_a_client_from_build_client_sends_through_the_whole_stack(world: World) -> None:
    clock, wire = FakeClock(), world.wire(503, 200)
    client = client_of(world, auth=Provider(), rate_limit="adaptive", transport=wire, clock=clock)
    response = await world.call(client.post, URL, data={"a": 1})
    assert (response.status_code, response.extensions["stkai"].attempts) == (200, 2)
    assert [request.headers["authorization"] for request in wire.requests] == ["Bearer the-token"] * 2
    assert "authorization" not in response.request.headers


# Bad input


@pytest.mark.parametrize(
    "rate_limit", ["leaky", "", 5, {"strategy": "adaptive"}, TokenBucket, True], ids=repr
)
async def test_an_unknown_rate_limit_is_an_error_that_lists_the_choices(
    world: World, rate_limit: Any
) -> None:
    with pytest.raises(
        stkai.ConfigurationError, match=r"'token_bucket', 'adaptive', .*RateLimitConfig.*Limiter of your own"
    ):
        client_of(world, auth=None, rate_limit=rate_limit)


@pytest.mark.parametrize("retry", [3, "no", True, RetryPolicy], ids=repr)
async def test_a_retry_that_is_not_a_policy_is_an_error(world: World, retry: Any) -> None:
    with pytest.raises(stkai.ConfigurationError, match=r"retry must be a stkai\.RetryPolicy or None"):
        client_of(world, auth=None, retry=retry)


@pytest.mark.parametrize("provider", ["cli", 5, Provider], ids=repr)
async def test_an_auth_that_is_not_a_provider_is_an_error(world: World, provider: Any) -> None:
    with pytest.raises(stkai.ConfigurationError, match="AuthProvider"):
        client_of(world, auth=provider)


# Automatic authentication


async def test_credentials_are_used_without_the_cli(world: World, credentials: None) -> None:
    bearer = layer(transport_of(world, transport=world.wire()), "auth").policy
    assert bearer.provider.client_id == "the-client"
    assert AuthChoice.automatic(STKAI.config, own_wire=False).kind == "credentials"


async def test_without_cli_and_credentials_the_error_lists_what_to_do(world: World) -> None:
    with pytest.raises(ValueError, match="no authentication is configured") as caught:
        client_of(world)
    message = str(caught.value)
    for help_ in (
        "STKAI_AUTH_CLIENT_ID",
        "STKAI_AUTH_TOKEN",
        "STKAI.configure(auth=",
        "stk login",
        "auth=provider",
        "auth=None",
    ):
        assert help_ in message
    assert "pip install oscli" not in message
    assert isinstance(caught.value, stkai.ConfigurationError)
    with pytest.raises(stkai.ConfigurationError, match="no authentication is configured"):
        StackBuilder.standard()


@pytest.mark.usefixtures("cli")
def test_the_cli_takes_precedence_and_signs_by_itself() -> None:
    transport = stkai.build_transport()
    assert str(transport) == "retry > wire"
    assert isinstance(wire_of(transport), StkCLITransport)
    assert isinstance(wire_of(StackBuilder.standard().build()), StkCLITransport)
    assert AuthChoice.automatic(STKAI.config, own_wire=False).kind == "cli"


@pytest.mark.usefixtures("cli", "credentials")
def test_the_cli_takes_precedence_over_credentials_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "stkai"):
        transport = stkai.build_transport()
    assert isinstance(wire_of(transport), StkCLITransport)
    assert "the configured client credentials are ignored" in caplog.text
    assert "the-secret" not in caplog.text


@pytest.mark.usefixtures("cli")
def test_the_cli_alone_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    stkai.build_transport()
    assert caplog.records == []


@pytest.mark.usefixtures("cli", "credentials")
async def test_a_custom_wire_and_an_async_stack_use_the_credentials_even_if_the_cli_is_there(
    world: World,
) -> None:
    assert str(transport_of(world, transport=world.wire())) == "retry > auth > wire"
    assert str(stkai.build_async_transport()) == "retry > auth > wire"


@pytest.mark.usefixtures("cli")
async def test_a_stack_that_the_cli_cannot_serve_is_a_clear_error(world: World) -> None:
    with pytest.raises(
        stkai.ConfigurationError, match="StackSpot CLI signs only what it sends itself"
    ) as caught:
        transport_of(world, transport=world.wire())
    assert "STKAI_AUTH_CLIENT_ID" in str(caught.value)
    with pytest.raises(stkai.ConfigurationError, match="StackSpot CLI signs only"):
        stkai.build_async_client()


@pytest.mark.usefixtures("cli", "credentials")
async def test_a_stack_that_needs_the_cli_to_sign_never_sends_unsigned(world: World) -> None:
    stack = StackBuilder.standard().layer(token_bucket(TokenBucket(1, 1)))
    with pytest.raises(stkai.ConfigurationError, match="StackSpot CLI signs only"):
        world.build(stack, world.wire())
    with pytest.raises(stkai.ConfigurationError, match="StackSpot CLI signs only"):
        stack.build_async()
    assert (
        str(world.build(stack.inside("retry", auth(Provider())), world.wire()))
        == "retry > auth > token_bucket > wire"
    )
    assert str(stack.build(StkCLITransport())) == "retry > token_bucket > wire"
    assert str(StackBuilder([adaptive(AimdLimiter(1, 1))]).build(StkCLITransport())) == "adaptive > wire"


async def test_a_configured_token_signs_and_is_shown_nowhere(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STKAI_AUTH_TOKEN", "my-api-key")
    wire = world.wire(httpx.Response(401))
    client = client_of(world, transport=wire)
    response = await world.call(client.get, "https://api.example.com/")
    assert response.status_code == 401
    assert [request.headers["authorization"] for request in wire.requests] == ["Bearer my-api-key"]
    assert "my-api-key" not in f"{client!r} {layer(client.transport, 'auth').policy!r}"


@pytest.mark.usefixtures("cli")
def test_a_configured_token_takes_precedence_over_the_cli(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STKAI_AUTH_TOKEN", "my-api-key")
    assert str(stkai.build_transport()) == "retry > auth > wire"
    assert not isinstance(wire_of(stkai.build_transport()), StkCLITransport)
    assert AuthChoice.automatic(STKAI.config, own_wire=False).kind == "token"


async def test_a_configured_token_goes_to_the_configured_origins_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STKAI_AUTH_TOKEN", "my-api-key")
    monkeypatch.setenv("STKAI_AUTH_ORIGINS", "https://api.example.com")
    wire = world.wire(httpx.Response(200))
    client = client_of(world, transport=wire)
    await world.call(client.get, "https://elsewhere.example.com/")
    assert "authorization" not in wire.requests[0].headers


# End to end


async def test_the_variables_alone_are_enough_to_reach_the_service(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with QuotaServer() as server:
        for name, value in {**server.env(), "STKAI_RATE_LIMIT_ENABLED": "true"}.items():
            monkeypatch.setenv(name, value)
        client = client_of(world)
        response = await world.call(client.post, server.create_url(), data={"input_data": "x"})
        assert response.status_code == 200
        transport = world.build(StackBuilder.standard())
        mounted = world.client(transport)
        assert (await world.call(mounted.post, server.create_url(), json={})).status_code == 200
        await world.close(client)
        await world.close(mounted)


# Functions that nobody would await


async def nothing(_: object) -> None:
    """An async function in place of a plain one."""


@pytest.mark.parametrize(
    "listener", [nothing, [nothing], 5, "print"], ids=["async", "list", "number", "text"]
)
async def test_a_listener_that_is_no_plain_function_is_an_error(world: World, listener: Any) -> None:
    with pytest.raises(stkai.ConfigurationError, match="listener must be"):
        client_of(world, auth=None, listener=listener, transport=world.wire())


async def test_random_numbers_that_are_no_function_are_an_error(world: World) -> None:
    with pytest.raises(stkai.ConfigurationError, match="random must be a function"):
        client_of(world, auth=None, random=random, transport=world.wire())


@pytest.mark.parametrize("name", ["cost", "settle"])
@pytest.mark.parametrize("function", [nothing, 5, "tokens"], ids=["async", "number", "text"])
async def test_a_cost_or_settle_that_is_no_plain_function_is_an_error(
    world: World, name: str, function: Any
) -> None:
    limiter = TokenBucket(1, 1, max_cost=1)
    options = {"auth": None, "rate_limit": limiter, "transport": world.wire(), name: function}
    with pytest.raises(stkai.ConfigurationError, match=f"{name} must be a plain function"):
        client_of(world, **options)


def test_what_the_layers_tell_each_other_does_not_reach_the_default_wire(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[httpx.Request] = []

    def send(_: object, request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", send)
    with httpx.Client(transport=stkai.build_transport(auth=None, rate_limit=None)) as client:
        client.get("https://api.example.com")
    assert [list(request.extensions) for request in seen] == [["timeout"]]
