"""The headers of a client's requests."""

from typing import Any

import httpx
import pytest

from stkai import _headers
from stkai._headers import has_field, headers_of

URL = httpx.URL("https://api.example.com:8443/v1")


class Later:
    """Headers of a later version of httpx, which keep their list elsewhere."""

    def __init__(self, items: Any = ()) -> None:
        self.items = list(items)

    def __contains__(self, name: str) -> bool:
        return name.encode() in {key.lower() for key, _ in self.items}


@pytest.mark.parametrize("given", [None, {"X-Own": "1", "accept": "text/plain", "HOST": "other"}])
@pytest.mark.parametrize(("method", "content"), [("GET", None), ("POST", b'{"a":1}'), ("POST", None)])
def test_the_headers_are_those_that_httpx_would_send(
    method: str, content: bytes | None, given: dict[str, str] | None
) -> None:
    ours = headers_of(method, URL, given, content)
    with httpx.Client() as client:
        own = {"content-type": "application/json"} if content else {}
        theirs = client.build_request(method, URL, headers={**own, **(given or {})}, content=content)
    assert type(ours) is httpx.Headers
    assert dict(ours) == dict(theirs.headers)
    assert httpx.Headers(ours.raw) == ours, "the same as if httpx had encoded them"


def test_a_later_version_of_httpx_encodes_them_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = headers_of("POST", URL, {"X-Own": "1"}, b"{}").raw
    monkeypatch.setattr(_headers, "_NO_HEADERS", Later())
    found: Any = headers_of("POST", URL, {"X-Own": "1"}, b"{}")
    assert found.items == expected
    assert has_field(found, b"x-own")
    assert not has_field(found, b"x-other")
    assert has_field(found, b"x-other", b"x-own")
    assert has_field(httpx.Headers({"X-Own": "1"}), b"x-own")
