"""A limiter belongs to its process: it refuses to be pickled, and a copy of it is the limiter itself."""

import copy
import pickle
from typing import Any

import httpx
import pytest

from stkai import AimdLimiter, AllOf, InFlight, PerHost, PerKey, TokenBucket, build_client, build_transport
from stkai.costs import model_of
from stkai.stores import MemoryStore, RedisStore
from stkai.testing import FakeClock
from stkai.transports import Turn

from ...support.ids import spelled

LIMITERS: list[Any] = [
    TokenBucket(5, 1),
    AimdLimiter(),
    TokenBucket(5, 1, share="team", store=MemoryStore(FakeClock())),
    InFlight(5),
    AllOf(TokenBucket(5, 1), InFlight(5)),
    PerHost(lambda _: TokenBucket(5, 1)),
    PerKey(model_of, lambda _: TokenBucket(5, 1)),
]


class Named(TokenBucket):
    """A limiter that its owner has taught to be pickled."""

    def __reduce__(self) -> Any:
        return Named, (self.max_requests, self.time_window)


@pytest.mark.parametrize("limiter", LIMITERS, ids=spelled)
def test_a_limiter_and_its_clients_say_where_to_make_them_instead_of_pickling(limiter: Any) -> None:
    wire = httpx.MockTransport(lambda _: httpx.Response(200))
    transport = build_transport(auth=None, rate_limit=limiter, transport=wire)
    client = build_client(auth=None, rate_limit=limiter, transport=wire)
    for thing in (limiter, transport, client):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(
                TypeError, match="make the client and its limiter in each process, with share="
            ):
                pickle.dumps(thing, protocol)


@pytest.mark.parametrize("limiter", LIMITERS, ids=spelled)
def test_a_copy_of_a_limiter_is_the_limiter_itself(limiter: Any) -> None:
    assert copy.copy(limiter) is copy.deepcopy(limiter) is limiter
    assert copy.deepcopy({"limits": [limiter]})["limits"] == [limiter]


def test_a_limiter_of_ones_own_may_be_pickled() -> None:
    bucket = Named(1, 60)
    assert bucket.ask(Turn(), 0.0) == 0
    assert pickle.loads(pickle.dumps(bucket)).ask(Turn(), 0.0) == 0  # noqa: S301 - its own


def test_a_store_with_connections_refuses_to_be_pickled_and_its_copy_is_itself() -> None:
    pytest.importorskip("redis")
    store = RedisStore("redis://localhost")
    with pytest.raises(TypeError, match="RedisStore cannot be pickled"):
        pickle.dumps(store)
    assert copy.copy(store) is copy.deepcopy(store) is store
