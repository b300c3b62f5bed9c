"""What servers say about their token quotas, and what the adaptive limiter makes of it."""

import math
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from stkai import AimdLimiter, RequestOptions, StackBuilder, TokenBucket
from stkai.costs import llm_tokens
from stkai.testing import FakeClock
from stkai.transports import Answer, Turn, adaptive, token_bucket
from stkai.transports._limits.pace.headers import CostReading, read_cost_limit

from ....support.world import World


@pytest.mark.parametrize(
    ("headers", "reading"),
    [
        ({"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "250"}, (1000, 250)),
        ({"X-RateLimit-Limit-Tokens": "1000", "X-RateLimit-Remaining-Tokens": "0"}, (1000, 0)),
        ({"x-ratelimit-remaining-tokens": "250"}, (math.inf, 250)),
        (
            {
                "anthropic-ratelimit-tokens-limit": "1000",
                "anthropic-ratelimit-tokens-remaining": "250",
                "anthropic-ratelimit-input-tokens-limit": "800",
                "anthropic-ratelimit-input-tokens-remaining": "300",
            },
            (800, 250),
        ),
        ({"x-ratelimitbysize-limit-minute": "1000", "x-ratelimitbysize-remaining-minute": "9"}, (1000, 9)),
        ({"x-ratelimit-limit-requests": "10", "x-ratelimit-remaining-requests": "5"}, None),
        ({"x-ratelimit-limit-tokens": "1000"}, None),
        ({"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "-1"}, None),
        ({"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "many"}, None),
        ({"x-ratelimit-remaining-tokens": "250", "age": "12"}, None),
        ({}, None),
    ],
)
def test_headers_are_read_under_the_names_in_use(
    headers: dict[str, str], reading: tuple[float, float] | None
) -> None:
    expected = None if reading is None else CostReading(*reading)
    assert read_cost_limit(httpx.Headers(headers)) == expected


def limiter() -> AimdLimiter:
    return AimdLimiter(6000, 60.0, max_cost=6000.0, penalty_factor=0.3)


def tell(policy: AimdLimiter, headers: dict[str, str]) -> None:
    """Let the limiter read the headers of an answer, to a request that costs nothing."""
    turn = Turn(cost=0.0)
    policy.ask(turn, 0.0)
    answer = Answer(0.0, 0.0, httpx.Response(200, headers=headers), None, lambda: datetime.now(UTC), 0.5)
    policy.learn(turn, answer)


@pytest.mark.parametrize(("count", "wait"), [("input", 1.0), ("output", 9.0), ("total", 9.0)])
def test_a_limit_of_one_kind_of_tokens_follows_what_is_said_about_that_kind(count: Any, wait: float) -> None:
    """Input was held up as long as the output of Anthropic's models, of which there is less."""
    policy = AimdLimiter(6000, 60.0, max_cost=6000.0, cost=llm_tokens(count), penalty_factor=0.3)
    headers = {
        "anthropic-ratelimit-tokens-limit": "12000",
        "anthropic-ratelimit-tokens-remaining": "5000",
        "anthropic-ratelimit-input-tokens-limit": "9000",
        "anthropic-ratelimit-input-tokens-remaining": "200",
        "anthropic-ratelimit-output-tokens-limit": "2000",
        "anthropic-ratelimit-output-tokens-remaining": "0",
    }
    tell(policy, headers)
    assert policy.ask(Turn(cost=300.0), 0.0) == pytest.approx(wait)


def test_units_that_others_have_used_are_not_available() -> None:
    policy = limiter()
    tell(policy, {"x-ratelimit-remaining-tokens": "100"})
    assert policy.ask(Turn(cost=300.0), 0.0) == pytest.approx(2.0)


def test_a_lower_server_limit_slows_the_refill_and_a_higher_one_does_not_speed_it_up() -> None:
    for limit, wait in (("3000", 6.0), ("60000", 3.0)):
        policy = limiter()
        headers = {"x-ratelimit-limit-tokens": limit, "x-ratelimit-remaining-tokens": "0"}
        tell(policy, headers)
        assert policy.ask(Turn(cost=300.0), 0.0) == pytest.approx(wait)


async def test_the_adaptive_layer_reads_them_and_a_token_bucket_does_not(world: World) -> None:
    answer = httpx.Response(200, headers={"x-ratelimit-remaining-tokens": "0"})
    options = {"stkai": RequestOptions(cost=0.0)}
    request = httpx.Request("POST", "https://api.example.com", extensions=options)
    for layer, waits in (
        (adaptive(limiter()), 3.0),
        (token_bucket(TokenBucket(100, 60.0, max_cost=6000.0)), 0.0),
    ):
        stack = StackBuilder([layer], clock=FakeClock())
        transport = world.build(stack, world.wire(answer, 200))
        await world.send(transport, request)
        options = {"stkai": RequestOptions(cost=300.0)}
        response = await world.send(transport, httpx.Request("POST", request.url, extensions=options))
        assert response.extensions["stkai"].queued == pytest.approx(waits)
