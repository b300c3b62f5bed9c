"""Who may see the token: origins in every notation, and redirects through real httpx clients."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, cast

import httpx
import pytest

from stkai import (
    STKAI,
    AuthenticationError,
    AuthProvider,
    BearerAuth,
    ConfigurationError,
    RetryPolicy,
    StackBuilder,
    build_transport,
)
from stkai._urls import is_private, origin_of, parse_origin
from stkai.transports import (
    AsyncAuthTransport,
    AsyncRetryTransport,
    Attempt,
    AuthTransport,
    Call,
    RetryTransport,
)

from ...support.ids import spelled
from ...support.wire import Answer, Wire
from ...support.world import World

pytestmark = pytest.mark.both_packages

HOME = "https://api.example.com"
START = f"{HOME}/start"


class Fixed(AuthProvider):
    def get_access_token(self) -> str:
        return "the-token"


def attempt_at(url: str) -> Attempt:
    return Attempt(Call.start(httpx.Request("GET", url), 0.0))


def signs(policy: BearerAuth, url: str, attempt: Attempt | None = None) -> bool:
    return policy.may_sign(httpx.URL(url), attempt or attempt_at(url))


# Origins


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://api.example.com", "https://api.example.com:443/path?q#f"),
        ("https://api.example.com", "HTTPS://API.EXAMPLE.COM"),
        ("https://api.example.com", "HTTPS://API.EXAMPLE.COM:443"),
        ("http://api.example.com", "HTTP://api.example.com:80/"),
        ("wss://api.example.com", "WSS://api.example.com:443/"),
        ("https://api.example.com", "https://user:password@api.example.com"),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example"),
        ("https://B\u00dcCHER.example", "https://b\u00fccher.example"),
        ("https://[2001:DB8::A]", "https://[2001:db8::a]:443"),
    ],
)
def test_two_spellings_of_an_origin_are_the_same_origin(one: str, other: str) -> None:
    assert origin_of(httpx.URL(one)) == origin_of(httpx.URL(other))


STRANGERS = {
    "another host": "https://evil.example.net/",
    "a sub-domain": "https://sub.api.example.com/",
    "the domain above": "https://example.com/",
    "a name that begins alike": "https://api.example.com.evil.net/",
    "a name that ends alike": "https://evilapi.example.com/",
    "a dot at the end": "https://api.example.com./",
    "another port": "https://api.example.com:8443/",
    "the port of http": "https://api.example.com:80/",
    "port zero": "https://api.example.com:0/",
    "another scheme": "http://api.example.com/",
    "another scheme at the same port": "http://api.example.com:443/",
    "home as user name": "https://api.example.com@evil.example.net/",
    "home as user name and password": "https://api.example.com:443@evil.example.net/",
    "home behind an escaped at": "https://api.example.com%40evil.example.net/",
    "home behind a backslash": "https://evil.example.net\\.api.example.com/",
    "a look-alike in Cyrillic": "https://\u0430pi.example.com/",
    "a dot escaped": "https://api%2eexample.com/",
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_lookalike_of_an_origin_is_another_origin(stranger: str) -> None:
    assert origin_of(httpx.URL(stranger)) != origin_of(httpx.URL(HOME))
    assert not signs(BearerAuth(Fixed(), HOME), stranger), "the policy has origins"
    policy, attempt = BearerAuth(Fixed()), attempt_at(START)
    assert [signs(policy, url, attempt) for url in (START, stranger, START)] == [True, False, True], (
        "it has none"
    )


def test_a_policy_without_origins_treats_each_call_separately() -> None:
    policy = BearerAuth(Fixed())
    assert signs(policy, START)
    assert signs(policy, "https://other.example.com/")


@pytest.mark.parametrize(
    ("origins", "home"),
    [
        ("https://api.example.com", ["https://api.example.com/v1", "HTTPS://api.example.com:443/v1"]),
        ("https://api.example.com/", ["https://api.example.com/v1"]),
        ("HTTPS://API.example.com:443", ["https://api.example.com/v1"]),
        (
            ["https://a.example", "https://b.example:8443"],
            ["https://a.example/1", "https://b.example:8443/2"],
        ),
        (("https://a.example", "https://a.example:443"), ["https://a.example/1"]),
        (iter(["https://a.example"]), ["https://a.example/1"]),
        ("https://b\u00fccher.example", ["https://xn--bcher-kva.example/", "https://b\u00fccher.example/"]),
        ("http://localhost:8080", ["http://localhost:8080/", "http://LOCALHOST:8080/"]),
        ("http://[::1]:8080", ["http://[::1]:8080/"]),
    ],
    ids=spelled,
)
def test_one_or_several_origins_may_be_given_in_any_spelling(
    origins: str | Iterable[str], home: list[str]
) -> None:
    policy = BearerAuth(Fixed(), origins)
    assert [signs(policy, url) for url in home] == [True] * len(home)
    assert not signs(policy, "https://c.example/")


def test_with_origins_the_first_hop_does_not_matter() -> None:
    policy, attempt = BearerAuth(Fixed(), HOME), attempt_at("https://evil.example.net/")
    assert not signs(policy, "https://evil.example.net/", attempt)
    assert signs(policy, START, attempt)


def test_an_empty_list_of_origins_means_that_none_may_see_the_token() -> None:
    assert not signs(BearerAuth(Fixed(), ()), START)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "api.example.com",
        "//api.example.com",
        "https://",
        "https:///path",
        "ftp://api.example.com",
        "https://api.example.com/v1",
        "https://api.example.com?q=1",
        "https://api.example.com#top",
        "https://*.example.com",
        "https://*",
        "https://api.example.com:port",
        "https://[::1",
        "https://me:hunter2@api.example.com",
        "https://hunter2@api.example.com",
        7,
        None,
    ],
    ids=spelled,
)
def test_an_invalid_origin_is_refused_when_the_policy_is_created(origin: Any) -> None:
    with pytest.raises(ConfigurationError, match="an origin must be scheme://host") as caught:
        BearerAuth(Fixed(), [HOME, origin])
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigurationError):
        parse_origin(origin)


def test_what_is_neither_an_origin_nor_several_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"an origin must be scheme://host.*, not 7"):
        BearerAuth(Fixed(), cast("str", 7))


# Encryption

PRIVATE = [
    "https://api.example.com",
    "wss://api.example.com",
    "http://localhost",
    "http://LocalHost:8080",
    "http://127.0.0.1",
    "http://127.255.255.254:8080",
    "http://[::1]",
    "http://[0:0:0:0:0:0:0:1]:8080",
]
EXPOSED = [
    "http://testserver",
    "ws://testserver",
    "http://10.0.0.1",
    "http://0.0.0.0",
    "http://128.0.0.1",
    "http://[::2]",
    "http://localhost.example.com",
    "http://127.0.0.1.example.com",
    "http://127.1",
    "http://localhost.",
    "http://localhost@testserver",
]


@pytest.mark.parametrize("url", PRIVATE)
def test_a_token_is_sent_over_a_private_connection(url: str) -> None:
    assert is_private(origin_of(httpx.URL(url)))
    assert signs(BearerAuth(Fixed()), url)


@pytest.mark.parametrize("url", EXPOSED)
def test_a_token_does_not_travel_unencrypted_to_another_machine_unless_allowed(url: str) -> None:
    assert not is_private(origin_of(httpx.URL(url)))
    with pytest.raises(AuthenticationError, match=r"unencrypted .* use https://, .*allow_http=True"):
        signs(BearerAuth(Fixed()), url)
    assert signs(BearerAuth(Fixed(), allow_http=True), url)


def test_the_permission_to_send_tokens_unencrypted_is_a_flag() -> None:
    with pytest.raises(ConfigurationError, match="allow_http must be True or False, not 'false'"):
        BearerAuth(Fixed(), allow_http="false")  # type: ignore[arg-type]


def test_an_unencrypted_origin_is_refused_when_the_policy_is_created_unless_allowed() -> None:
    origins = [HOME, "http://testserver:8080", "http://localhost", "http://10.0.0.1"]
    with pytest.raises(ConfigurationError) as caught:
        BearerAuth(Fixed(), origins)
    assert "unencrypted to http://testserver:8080, http://10.0.0.1: use https://" in str(caught.value)
    policy = BearerAuth(Fixed(), origins, allow_http=True)
    assert signs(policy, "http://testserver:8080/v1")
    assert not signs(policy, "http://testserver/v1")


def test_a_request_that_is_not_signed_may_go_unencrypted() -> None:
    assert not signs(BearerAuth(Fixed(), HOME), "http://testserver/")
    assert not signs(BearerAuth(Fixed()), "http://testserver/", attempt_at(START))


async def test_a_request_that_would_expose_the_token_is_not_sent(world: World) -> None:
    wire = Wire()
    transport: Any = world.pick(AuthTransport, AsyncAuthTransport)(wire, Fixed())
    with pytest.raises(AuthenticationError, match="unencrypted to http://testserver:8080") as caught:
        await world.send(transport, httpx.Request("GET", "http://testserver:8080/secret?q=1"))
    assert wire.requests == []
    assert isinstance(caught.value, httpx.TransportError)
    assert caught.value.request.url == "http://testserver:8080/secret?q=1"
    assert "q=1" not in str(caught.value)


def test_the_settings_say_whether_token_and_secret_may_travel_unencrypted() -> None:
    credentials = {"client_id": "id", "client_secret": "secret", "origins": ["http://testserver"]}
    STKAI.configure(auth=credentials)
    with pytest.raises(ConfigurationError, match="token would travel unencrypted"):
        StackBuilder.standard()
    STKAI.configure(auth={"origins": None, "token_url": "http://id.example.com/token"})
    with pytest.raises(ConfigurationError, match="client secret unencrypted"):
        StackBuilder.standard()
    STKAI.configure(auth={"origins": ["http://testserver"], "allow_http": True})
    policies = [layer.policy for layer in StackBuilder.standard().layers]
    (policy,) = [policy for policy in policies if isinstance(policy, BearerAuth)]
    assert signs(policy, "http://testserver/v1")
    transport = build_transport(auth=Fixed(), transport=Wire())
    assert isinstance(transport, RetryTransport)
    assert isinstance(transport.inner, AuthTransport)
    assert signs(transport.inner.policy, "http://testserver/v1")


# Redirects, followed by real httpx clients

REDIRECTS = [301, 302, 303, 307, 308]


class AllOrigins(BearerAuth):
    """The same without a scope: signs every request."""

    def may_sign(self, url: httpx.URL, attempt: Attempt) -> bool:
        return True


class Web(Wire):
    """Redirects from one URL to the next, and answers 200 at the last."""

    def __init__(self, status: int, *urls: str) -> None:
        following = dict(pairwise(urls))

        def answer(_: httpx.Request) -> Answer:
            location = following.get(urls[len(self.requests) - 1])
            return (
                200 if location is None else httpx.Response(status, headers={b"location": location.encode()})
            )

        super().__init__(answer)

    @property
    def seen(self) -> list[str | None]:
        """The `Authorization` header that each hop received."""
        return [request.headers.get("authorization") for request in self.requests]


def client_over(world: World, wire: Wire, policy: BearerAuth) -> Any:
    auth = world.pick(AuthTransport, AsyncAuthTransport)(wire, policy)
    kind: Any = world.pick(RetryTransport, AsyncRetryTransport)
    return world.client(kind(auth), follow_redirects=True)


TOKEN = "Bearer the-token"
POLICIES: dict[str, Callable[[], BearerAuth]] = {
    "by its first hop": lambda: BearerAuth(Fixed()),
    "by its origins": lambda: BearerAuth(Fixed(), HOME),
}
each_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
REACHABLE = ("another host", "a sub-domain", "another port", "another scheme", "home as user name")


@each_policy
@pytest.mark.parametrize("stranger", REACHABLE)
async def test_a_redirect_takes_no_token_to_another_origin(
    world: World, stranger: str, policy: Callable[[], BearerAuth]
) -> None:
    for status in (303, 307):  # A GET follows, or the POST again.
        web = Web(status, START, STRANGERS[stranger])
        response = await world.call(client_over(world, web, policy()).post, START, json={})
        assert response.status_code == 200
        assert web.seen == [TOKEN, None]


async def test_without_a_scope_the_token_would_leak_to_other_origins(world: World) -> None:
    """What the tests above would see without the scope: httpx alone does not keep the token from other origins."""
    for status in REDIRECTS:
        web = Web(status, START, "https://evil.example.net/")
        await world.call(client_over(world, web, AllOrigins(Fixed())).post, START, json={})
        assert web.seen == [TOKEN, TOKEN]


@each_policy
async def test_redirects_within_the_origin_keep_the_token(
    world: World, policy: Callable[[], BearerAuth]
) -> None:
    urls = (START, "/next", "https://api.example.com:443/then", "HTTPS://api.example.com:443/last")
    for status in REDIRECTS:
        web = Web(status, *urls)
        await world.call(client_over(world, web, policy()).post, START, json={})
        assert web.seen == [TOKEN] * 4


@each_policy
async def test_a_call_that_returns_to_its_first_origin_is_signed_again(
    world: World, policy: Callable[[], BearerAuth]
) -> None:
    web = Web(307, START, "https://evil.example.net/", "https://more.example.net/", f"{HOME}/back")
    await world.call(client_over(world, web, policy()).post, START, json={})
    assert web.seen == [TOKEN, None, None, TOKEN]


async def test_a_call_that_starts_elsewhere_is_signed_at_the_given_origins(world: World) -> None:
    web = Web(307, "https://front.example.net/", START)
    await world.call(client_over(world, web, BearerAuth(Fixed(), HOME)).get, "https://front.example.net/")
    assert web.seen == [None, TOKEN]


async def test_several_origins_all_see_the_token(world: World) -> None:
    web = Web(307, START, "https://b.example.com/", "https://evil.example.net/")
    policy = BearerAuth(Fixed(), [HOME, "https://b.example.com"])
    await world.call(client_over(world, web, policy).get, START)
    assert web.seen == [TOKEN, TOKEN, None]


async def test_a_redirect_followed_by_hand_takes_no_token_to_another_origin(world: World) -> None:
    web = Web(302, START, "https://evil.example.net/")
    kind: Any = world.pick(AuthTransport, AsyncAuthTransport)
    client = world.client(kind(web, Fixed()))
    response = await world.call(client.get, START)
    await world.call(client.send, response.next_request)
    assert web.seen == [TOKEN, None]


async def test_two_calls_with_the_same_extensions_are_independent(world: World) -> None:
    wire, extensions = world.wire(200, 200), {"anything": 1}
    kind: Any = world.pick(AuthTransport, AsyncAuthTransport)
    client = world.client(kind(wire, Fixed()))
    await world.call(client.get, START, extensions=extensions)
    await world.call(client.get, "https://other.example.com/", extensions=extensions)
    assert [request.headers.get("authorization") for request in wire.requests] == [TOKEN, TOKEN]
    assert extensions == {"anything": 1}


async def test_neither_of_two_mounted_stacks_signs_a_redirect_to_another_origin(world: World) -> None:
    kind = world.pick(AuthTransport, AsyncAuthTransport)
    web = Web(307, START, "https://other.example.com/")
    mounts = {"https://api.example.com": kind(web, Fixed()), "https://other.example.com": kind(web, Fixed())}
    client = world.client(mounts=mounts, follow_redirects=True)
    await world.call(client.get, START)
    assert web.seen == [TOKEN, None]
    await world.close(client)


async def test_where_the_token_does_not_go_the_users_own_authorization_does(world: World) -> None:
    wire = world.wire(200, 200)
    client = client_over(world, wire, BearerAuth(Fixed(), HOME))
    headers = {"Authorization": "Basic mine"}
    await world.call(client.get, "https://other.example.com/", headers=headers)
    await world.call(client.get, START, headers=headers)
    assert [request.headers["authorization"] for request in wire.requests] == ["Basic mine", TOKEN]


async def test_a_401_from_another_origin_drops_no_token(world: World) -> None:
    class Watched(Fixed):
        forgotten = 0

        def forget(self, token: str) -> None:
            self.forgotten += 1

    provider = Watched()
    wire = world.wire(401)
    response = await world.call(
        client_over(world, wire, BearerAuth(provider, HOME)).get, "https://other.example.com/"
    )
    assert response.status_code == 401
    assert provider.forgotten == 0


class Again(httpx.BaseTransport):
    """A transport of the user's own that sends a request again after a 503, as retrying transports do."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def handle_request(self, request: Any) -> Any:
        response = self.inner.handle_request(request)
        return self.inner.handle_request(request) if response.status_code == 503 else response


@pytest.mark.worlds("sync")
@pytest.mark.parametrize("policy", [None, RetryPolicy(1, initial_delay=0)])
def test_a_redirected_request_that_is_sent_again_is_not_signed_either(policy: RetryPolicy | None) -> None:
    seen = list[tuple[str, bool]]()

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, "authorization" in request.headers))
        if request.url.host == "api.example.com":
            return httpx.Response(302, headers={"Location": "https://stranger.example/x"})
        return httpx.Response(503 if len(seen) < 4 else 200)

    stack = build_transport(
        auth=Fixed(), rate_limit=None, retry=policy, transport=httpx.MockTransport(answer)
    )
    with httpx.Client(transport=Again(stack), follow_redirects=True) as client:
        assert client.get(START).status_code in {200, 503}
        redirect = client.build_request("GET", START)
        (following,) = [client.send(redirect, follow_redirects=False).next_request]
        assert following is not None
        for _ in range(3):
            client.send(following)
    assert {signed for host, signed in seen if host == "stranger.example"} == {False}
    assert {signed for host, signed in seen if host == "api.example.com"} == {True}
