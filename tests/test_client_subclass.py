"""HttpClient as a base class, as in the API reference."""

import inspect
from typing import Any
from unittest.mock import create_autospec

import httpx
import pytest

from stkai import HttpClient

from .support.clients import URL
from .support.wire import Wire


class OwnVerbs(HttpClient):
    """As in the API reference: two verbs, and no call to `super().__init__`."""

    def __init__(self) -> None:
        self.posted: list[Any] = []

    def get(self, url: str, headers: Any = None, timeout: float = 30, **_: Any) -> httpx.Response:
        return httpx.Response(200, text=url)

    def post(
        self, url: str, data: Any = None, headers: Any = None, timeout: float = 30, **_: Any
    ) -> httpx.Response:
        self.posted.append(data)
        return httpx.Response(201)


def test_a_subclass_that_overrides_get_and_post_needs_no_transport() -> None:
    with OwnVerbs() as client:
        assert client.get(URL).text == URL
        assert client.post(URL, {"a": 1}).status_code == 201
        assert client.posted == [{"a": 1}]


def test_a_subclass_that_does_not_override_post_stream_cannot_stream() -> None:
    with pytest.raises(NotImplementedError, match="OwnVerbs"):
        OwnVerbs().post_stream(URL)


def test_a_subclass_without_a_transport_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"super\(\).__init__\(transport\)"):
        OwnVerbs().transport  # noqa: B018
    OwnVerbs().close()


def test_a_subclass_without_a_transport_can_be_inspected() -> None:
    client = OwnVerbs()
    assert not hasattr(client, "transport")
    assert dict(inspect.getmembers(client))["posted"] == []
    stand_in = create_autospec(client)
    stand_in.post.return_value = httpx.Response(201)
    assert stand_in.post(URL, {"a": 1}).status_code == 201


def test_a_subclass_that_overrides_the_verbs_may_call_super_without_a_transport() -> None:
    class Polite(OwnVerbs):
        def __init__(self) -> None:
            HttpClient.__init__(self)
            super().__init__()

    assert Polite().get(URL).text == URL


def test_a_subclass_can_override_one_verb_and_leave_the_others_to_its_transport() -> None:
    class Loud(HttpClient):
        def get(self, url: str, *args: Any, **kwargs: Any) -> httpx.Response:
            return super().get(url + "&loud=1", *args, **kwargs)

    wire = Wire(200, 200)
    client = Loud(wire)
    client.get(URL)
    client.post(URL)
    assert [request.url.query for request in wire.requests] == [b"page=1&loud=1", b"page=1"]
