"""Which proxy a URL goes through: only the decision, without sockets."""

import httpx
import pytest

from stkai import HttpConfig
from stkai._wire.proxies import ProxyMap

ALL = {"all": "http://proxy:1"}


@pytest.mark.parametrize(
    ("proxies", "url", "proxy"),
    [
        ({}, "https://example.com", None),
        ({"all": "http://p:1"}, "https://example.com", "http://p:1"),
        ({"http": "http://p:1"}, "https://example.com", None),
        ({"http": "http://p:1"}, "http://example.com", "http://p:1"),
        ({"https": "http://p:2", "all": "http://p:1"}, "https://example.com", "http://p:2"),
        ({"https": "http://p:2", "all": "http://p:1"}, "http://example.com", "http://p:1"),
        ({"https": "p:2"}, "https://example.com", "http://p:2"),
        ({"https": "socks5://p:2"}, "https://example.com", "socks5://p:2"),
    ],
)
def test_the_proxy_of_the_scheme_takes_precedence_over_all_proxy(
    proxies: dict[str, str], url: str, proxy: str | None
) -> None:
    assert ProxyMap(proxies).proxy_for(httpx.URL(url)) == proxy


@pytest.mark.parametrize(
    ("entry", "direct", "through"),
    [
        ("*", "https://example.com http://192.0.2.1 http://[2001:db8::1]", ""),
        (
            "example.com",
            "https://example.com https://a.b.example.com http://EXAMPLE.com",
            "https://badexample.com",
        ),
        (".example.com", "https://example.com https://a.example.com", "https://badexample.com"),
        ("*.example.com", "https://a.example.com", "https://badexample.com"),
        ("EXAMPLE.com", "https://example.com", "https://example.org"),
        ("internal", "http://internal:8080 http://a.internal", "http://internal.com"),
        ("example.com:8443", "https://example.com:8443", "https://example.com https://example.com:443"),
        ("example.com:443", "https://example.com", "http://example.com"),
        ("https://example.com", "https://example.com", "http://example.com"),
        ("all://example.com", "https://example.com http://example.com", "http://example.org"),
        ("http://example.com:81", "http://example.com:81", "http://example.com https://example.com:81"),
        ("192.0.2.1", "http://192.0.2.1:5000", "http://192.0.2.2 http://1192.0.2.1.com"),
        ("192.0.2.1:81", "http://192.0.2.1:81", "http://192.0.2.1"),
        ("10.0.0.0/8", "http://10.1.2.3", "http://11.1.2.3 http://10.example.com"),
        ("10.1.2.3/8", "http://10.200.0.1", "http://11.1.2.3"),
        ("::3", "http://[::3]:5000", "http://[::2] http://example.com"),
        ("[::3]", "http://[::3]", "http://[::2]"),
        ("[::3]:81", "http://[::3]:81", "http://[::3]"),
        ("fd00::/8", "http://[fd12::1]", "http://[fe80::1] http://10.0.0.1"),
        ("a.com , b.com,,", "https://a.com https://b.com", "https://c.com"),
        ("a.com b.com", "https://a.com https://b.com", "https://c.com"),
        ("example.com", "https://example.com. https://a.example.com.", "https://badexample.com."),
        ("example.com.", "https://example.com https://example.com.", "https://badexample.com"),
        ("", "", "https://example.com"),
    ],
)
def test_exactly_the_hosts_in_no_proxy_are_reached_directly(entry: str, direct: str, through: str) -> None:
    proxies = ProxyMap(ALL, entry)
    assert {url: proxies.proxy_for(httpx.URL(url)) for url in direct.split()} == dict.fromkeys(direct.split())
    assert all(proxies.proxy_for(httpx.URL(url)) == "http://proxy:1" for url in through.split())


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost.", "a.b.localhost", "127.0.0.1", "127.8.9.10", "[::1]"]
)
def test_no_proxy_is_used_for_this_machine(host: str) -> None:
    for url in (f"http://{host}:8080/", f"https://{host}/"):
        assert ProxyMap(ALL).proxy_for(httpx.URL(url)) is None


@pytest.mark.parametrize(
    "host",
    ["localhost.example.com", "notlocalhost", "128.0.0.1", "127.0.0.1.example.com", "[::2]", "10.0.0.1"],
)
def test_a_lookalike_of_this_machine_goes_through_the_proxy(host: str) -> None:
    assert ProxyMap(ALL).proxy_for(httpx.URL(f"http://{host}/")) == "http://proxy:1"


def test_the_variables_are_read_in_either_case_and_others_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://p:1")
    monkeypatch.setenv("https_proxy", "http://p:2")
    monkeypatch.setenv("FTP_PROXY", "http://p:3")
    monkeypatch.setenv("NO_PROXY", "example.org")
    proxies = ProxyMap.of(HttpConfig())
    assert proxies.urls == {"http://p:1", "http://p:2"}
    assert proxies.proxy_for(httpx.URL("https://example.com")) == "http://p:2"
    assert proxies.proxy_for(httpx.URL("https://example.org")) is None


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "")
    assert ProxyMap.of(HttpConfig()).urls == frozenset()


def test_many_hosts_do_not_fill_the_memory() -> None:
    proxies = ProxyMap(ALL)
    for number in range(1000):
        proxies.proxy_for(httpx.URL(f"https://host-{number}.example.com"))
    assert proxies._choose.cache_info().currsize <= 256
