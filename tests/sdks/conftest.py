"""The SDKs over the embedded server, in virtual time."""

import os
from collections.abc import Iterator

import pytest

from stkai.testing import FakeClock, QuotaServer

from .chat_server import ChatServer
from .sdks import SDKS, Sdk

# Without these, LiteLLM and LangChain would look for the internet.
os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LANGSMITH_TRACING="false", DO_NOT_TRACK="1")


@pytest.fixture(params=SDKS, ids=lambda sdk: sdk.name)
def sdk(request: pytest.FixtureRequest) -> Sdk:
    made: Sdk = request.param
    return made


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> Iterator[QuotaServer]:
    with ChatServer(clock=clock) as running:
        yield running
