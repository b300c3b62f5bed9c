"""The limiter that the settings describe, and the warning of settings without effect."""

import logging
from typing import Any

import httpx
import pytest

import stkai
from stkai import STKAI, AimdLimiter, AllOf, ConfigurationError, InFlight, RateLimitConfig, TokenBucket
from stkai import _standard as standard
from stkai.testing import FakeClock

from ...support.world import World


def policy_of(**build: Any) -> Any:
    """The limiter of a stack that is built with these arguments."""
    transport: Any = stkai.build_transport(
        auth=None, retry=None, transport=httpx.MockTransport(lambda _: httpx.Response(200)), **build
    )
    return getattr(transport, "policy", None)


@pytest.fixture(autouse=True)
def no_warning_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard, "_has_warned_of_settings", False)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("STKAI_RATE_LIMIT_ENABLED", "true")
    return monkeypatch


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        ("POST", {"POST"}),
        ("post, Put", {"POST", "PUT"}),
        ('["PATCH"]', {"PATCH"}),
        ("M-SEARCH", {"M-SEARCH"}),
        ("none", None),
    ],
)
def test_a_variable_names_the_methods_that_count(
    on: pytest.MonkeyPatch, text: str, methods: set[str] | None
) -> None:
    assert policy_of().methods is None
    STKAI.reset()
    on.setenv("STKAI_RATE_LIMIT_METHODS", text)
    assert policy_of().methods == methods


@pytest.mark.parametrize("methods", [[], "POST GET", ["P T"], [1], "", "all", ["*"], ["'POST'"], ["true"]])
def test_a_config_with_bad_methods_is_refused_by_name(methods: Any) -> None:
    with pytest.raises(ConfigurationError, match="methods"):
        RateLimitConfig(methods=methods)


def test_the_error_of_a_wait_of_zero_says_how_not_to_wait() -> None:
    with pytest.raises(ConfigurationError, match=r"max_wait_time must be .* \(0\.001 for no wait\), or None"):
        TokenBucket(1, 60, max_wait_time=0)


@pytest.mark.parametrize(("strategy", "kind"), [("token_bucket", TokenBucket), ("adaptive", AimdLimiter)])
async def test_max_cost_counts_tokens_with_either_strategy(
    world: World, on: pytest.MonkeyPatch, strategy: str, kind: Any
) -> None:
    on.setenv("STKAI_RATE_LIMIT_STRATEGY", strategy)
    on.setenv("STKAI_RATE_LIMIT_MAX_COST", "1000")
    policy: Any = policy_of()
    assert isinstance(policy, kind)
    assert (policy.max_cost, repr(policy.cost)) == (1000, "llm_tokens('total')")
    build: Any = stkai.build_async_transport if world.is_async else stkai.build_transport
    clock = FakeClock()
    transport = build(auth=None, retry=None, transport=world.wire(200, 200), clock=clock)
    for _ in range(2):
        request = httpx.Request("POST", "https://api.example.com", json={"max_tokens": 1000})
        await world.send(transport, request)
    assert clock.monotonic() == pytest.approx(60.0, rel=0.02)


def test_units_may_be_counted_instead_of_requests(on: pytest.MonkeyPatch) -> None:
    on.setenv("STKAI_RATE_LIMIT_MAX_REQUESTS", "none")
    with pytest.raises(
        ConfigurationError, match="STKAI_RATE_LIMIT_MAX_REQUESTS and STKAI_RATE_LIMIT_MAX_COST"
    ):
        policy_of()
    STKAI.reset()
    on.setenv("STKAI_RATE_LIMIT_MAX_COST", "1000")
    bucket = policy_of()
    assert isinstance(bucket, TokenBucket)
    assert (bucket.max_requests, bucket.time_window, bucket.max_cost) == (None, 60, 1000)


def test_in_flight_is_a_limit_beside(on: pytest.MonkeyPatch) -> None:
    on.setenv("STKAI_RATE_LIMIT_IN_FLIGHT", "16")
    on.setenv("STKAI_RATE_LIMIT_METHODS", "POST")
    policy = policy_of()
    assert isinstance(policy, AllOf)
    bucket, places = policy.parts
    assert (type(bucket), type(places), places.n, places.methods) == (TokenBucket, InFlight, 16, {"POST"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("METHODS", "PO ST"),
        ("METHODS", "[]"),
        ("METHODS", "GET,,;"),
        ("METHODS", "all"),
        ("METHODS", "*"),
        ("MAX_COST", "0"),
        ("MAX_COST", "many"),
        ("IN_FLIGHT", "0"),
        ("IN_FLIGHT", "1.5"),
        ("COST", "words"),
        ("COST", "llm-tokens"),
    ],
)
def test_bad_settings_are_refused_by_name(on: pytest.MonkeyPatch, name: str, value: str) -> None:
    on.setenv(f"STKAI_RATE_LIMIT_{name}", value)
    with pytest.raises(ConfigurationError, match=f"STKAI_RATE_LIMIT_{name}"):
        policy_of()


def test_a_config_has_the_new_fields() -> None:
    config = RateLimitConfig(methods=("post",), max_cost=5, cost="llm-tokens", in_flight=3)
    assert (config.methods, config.max_cost, config.cost, config.in_flight) == (("POST",), 5, "llm-tokens", 3)
    default = RateLimitConfig()
    assert (default.methods, default.max_cost, default.cost, default.in_flight) == (None, None, None, None)
    counting = RateLimitConfig(max_cost=5)
    assert (counting.cost, counting.model_fields_set) == ("llm-tokens", {"max_cost"})
    policy = policy_of(rate_limit=config)
    assert (
        repr(policy)
        == "AllOf(TokenBucket(100, 60, max_cost=5, burst=100, methods=['POST']), InFlight(3, methods=['POST']))"
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_settings_of_a_limiter_that_is_off_are_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STKAI_RATE_LIMIT_MAX_REQUESTS", "5")
    for _ in range(3):
        assert policy_of() is None
    (warning,) = warnings(caplog)
    assert "STKAI_RATE_LIMIT_ENABLED" in warning
    assert "STKAI_RATE_LIMIT_MAX_REQUESTS" in warning
    assert STKAI.explain(list[str]().append).splitlines()[-1] == warning
    monkeypatch.setenv("STKAI_RATE_LIMIT_METHODS", "POST")
    STKAI.reset()
    assert "METHODS have no effect" in STKAI.explain(list[str]().append)


@pytest.mark.parametrize("build", [{}, {"rate_limit": "adaptive"}], ids=["settings", "named"])
def test_a_time_window_without_requests_is_warned_of_if_the_quota_is_to_be_found(
    on: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, build: dict[str, Any]
) -> None:
    on.setenv("STKAI_RATE_LIMIT_STRATEGY", "adaptive")
    on.setenv("STKAI_RATE_LIMIT_TIME_WINDOW", "1")
    if build:
        on.delenv("STKAI_RATE_LIMIT_ENABLED")
    assert policy_of(**build).max_requests is None
    (warning,) = warnings(caplog)
    assert "STKAI_RATE_LIMIT_TIME_WINDOW has no effect; set STKAI_RATE_LIMIT_MAX_REQUESTS as well" in warning


@pytest.mark.parametrize(
    ("variables", "build"),
    [
        ({}, {}),
        ({"TIME_WINDOW": "1", "MAX_REQUESTS": "5"}, {"rate_limit": "adaptive"}),
        ({"TIME_WINDOW": "1", "SHARE": "team"}, {"rate_limit": "adaptive"}),
        ({"TIME_WINDOW": "1", "MAX_COST": "5"}, {"rate_limit": "adaptive"}),
        ({"MAX_REQUESTS": "5", "ENABLED": "false"}, {}),
        ({"MAX_REQUESTS": "5", "ENABLED": "true"}, {}),
        ({"MAX_REQUESTS": "5"}, {"rate_limit": None}),
        ({"MAX_REQUESTS": "5"}, {"rate_limit": "token_bucket"}),
        ({"MAX_REQUESTS": "5"}, {"rate_limit": [InFlight(2)]}),
    ],
)
def test_nothing_is_warned_of_where_nothing_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
    build: dict[str, Any],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"STKAI_RATE_LIMIT_{name}", value)
    policy_of(**build)
    assert warnings(caplog) == []


def test_a_share_of_a_limiter_that_is_off_is_still_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STKAI_RATE_LIMIT_SHARE", "team")
    with pytest.raises(ConfigurationError, match="STKAI_RATE_LIMIT_ENABLED"):
        policy_of()


def test_the_references_clients_count_posts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STKAI_RATE_LIMIT_ENABLED", "true")
    monkeypatch.setenv("STKAI_AUTH_TOKEN", "token")
    client = stkai.EnvironmentAwareHttpClient()
    assert "methods=['POST']" in repr(client.transport)
    client.close()
    STKAI.reset()
    monkeypatch.setenv("STKAI_RATE_LIMIT_METHODS", "GET,POST")
    client = stkai.EnvironmentAwareHttpClient()
    assert "methods=['GET', 'POST']" in repr(client.transport)
    client.close()
