"""An adaptive pace that follows the window that a server describes, alone and through the layer."""

import math
from collections.abc import Callable

import httpx
import pytest
from benchmarks.adaptive.rate_headers import rate_headers

from stkai import AimdLimiter, Event, RateChanged, StackBuilder
from stkai.testing import FakeClock
from stkai.testing._service import FixedWindow
from stkai.transports import adaptive
from stkai.transports._limits.pace.headers import Reading
from stkai.transports._limits.sources import Limits

from ....support.sender import QUOTA, Sender, plain, sender
from ....support.wire import Wire
from ....support.world import World

LIMIT, WINDOW = 100, 60.0


def reading(now: float, remaining: float, *, end: float = WINDOW) -> Reading:
    """A reading at `now` of the window that ends at `end`."""
    return Reading("", LIMIT, remaining, max(0.0, end - now), WINDOW)


def on_line(now: float, factor: float = 1.0, *, end: float = WINDOW) -> float:
    """The remaining requests at which the pace is `factor` times the base."""
    return 1 + math.cbrt(factor) * LIMIT * (end - now) / WINDOW


def near(value: float) -> object:
    """What a header can say of a number: three decimals of the remaining requests."""
    return pytest.approx(value, rel=1e-3)


def led() -> Sender:
    """A sender that follows a window, at second 6, at the rate with which it starts."""
    one = sender()
    one.accept(1.0, reading=reading(1.0, on_line(1.0)))
    rate = one.rate
    one.accept(6.0, reading=reading(6.0, on_line(6.0)))
    assert one.rate == near(rate)
    return one


def test_the_pace_follows_the_window_and_its_base_after_its_end() -> None:
    one = led()
    base = one.rate
    one.accept(30.0, reading=reading(30.0, on_line(30.0, 0.5)))
    assert one.rate == near(base / 2)
    one.hold_back(30.0)
    # No growth by the law, though a turn waits.
    assert one.look(59.0) == near(base / 2)
    assert one.look(61.0) > base / 2


def test_a_long_wait_within_a_window_is_slept_in_halves_also_at_the_whole_quota() -> None:
    one = led()
    for end in (WINDOW, 2 * WINDOW):
        for now in (end - 50, end - 5):
            one.accept(now, reading=reading(now, LIMIT, end=end))
    assert one.rate == one.source.quota.ceiling
    assert one.source.mode.nap(20.0) == 10.0


def test_a_used_up_window_pauses_all_requests_until_its_end() -> None:
    one = led()
    one.accept(30.0, reading=reading(30.0, 0))
    wait = one.wait(30.0)
    assert 30.0 <= wait < 30.0 + 1 / one.rate
    assert not one.take(59.9)


def test_a_refusal_that_the_window_explains_cuts_nothing_and_is_not_reported() -> None:
    one = led()
    base = one.rate
    assert one.refuse(50.0, 49.9, asked=10.0, reading=reading(50.0, 0)) is None
    # Of the answers of this window two were on the line; the last is weighed by the sixth that was left of it.
    assert one.look(60.0) > 0.4 * base


def test_a_refusal_that_the_window_does_not_explain_cuts_and_two_end_the_belief() -> None:
    one = led()
    rate = one.rate
    change = one.refuse(20.0, 19.9, reading=reading(20.0, 50))
    assert change is not None
    assert change.new < rate
    assert one.source._windowed.listens(20.0)
    one.refuse(21.0, 20.9)
    assert not one.source._windowed.listens(30.0)


def test_when_the_window_is_no_longer_believed_the_law_continues_from_its_base() -> None:
    one = led()
    base = one.rate
    one.accept(30.0, reading=reading(30.0, on_line(30.0, 0.25)))
    assert one.rate == near(base / 4)
    one.accept(40.0, reading=reading(40.0, 50, end=95.0))
    assert one.rate == near(base)
    one.hold_back(40.0)
    assert one.look(50.0) > base


def test_a_window_that_no_second_one_follows_has_taught_nothing_and_the_report_names_the_headers() -> None:
    one = led()
    rate = one.rate
    one.accept(10.0, reading=reading(10.0, 1))
    lowered = one.accept(60.5, reading=reading(60.5, 1))
    raised = one.accept(62.0, reading=reading(62.0, 50, end=90.0))
    assert lowered is not None
    assert raised is not None
    assert lowered.new < 0.7 * rate
    assert (raised.new, raised.reason) == (near(rate), "rate limit headers")


def test_after_a_long_silence_the_law_continues_from_the_base() -> None:
    one = led()
    base = one.rate
    one.accept(50.0, reading=reading(50.0, on_line(50.0, 0.25)))
    one.hold_back(50.0)
    assert one.look(1000.0) > base / 4


def test_changes_of_the_base_are_reported_and_not_every_move_within_a_window() -> None:
    one = led()
    base = one.rate
    changes = [one.accept(float(now), reading=reading(now, on_line(now, 1.2))) for now in range(7, 60)]
    assert changes == [None] * 53
    change = one.accept(61.0, reading=reading(61.0, 99, end=120.0))
    assert change is not None
    assert change.reason == "rate limit headers"
    assert change.old == near(base)
    assert change.new == pytest.approx(base * 1.2**0.8 + 0.02 * QUOTA, rel=0.03)


def test_without_quota_headers_answers_are_checked_once_a_second_and_at_each_refusal() -> None:
    one = sender()
    instants = [now / 100 for now in range(300)]
    assert [now for now in instants if one.source._windowed.listens(now)] == [0.0, 1.0, 2.0]
    assert one.source._windowed.listens(2.995, refused=True)
    one.accept(4.0, reading=reading(4.0, 50))
    assert all(one.source._windowed.listens(4.0 + now) for now in instants)
    assert one.source.listens(4.0)


def test_plain_aimd_reads_no_headers() -> None:
    one = plain()
    assert not one.source._windowed.listens(0.0, refused=True)
    for now in (1.0, 6.0, 7.0):
        one.accept(now, reading=reading(now, 1))
    assert one.rate == QUOTA


@pytest.mark.parametrize("window", [1e9, 1e11, 7200.0])
def test_a_window_far_longer_than_the_quotas_stops_no_request(window: float) -> None:
    one = sender()
    for second in range(20):
        one.accept(float(second), reading=Reading("long", 100.0, 0.0, window - second, window))
    assert one.take(20.0)
    assert one.wait(20.0) < 60.0


# The layer


class Server:
    """A server with a fixed window behind the layer, and the headers that it sends."""

    def __init__(self, world: World, style: str) -> None:
        self.quota = FixedWindow(20, 30.0)
        self.style = style
        self.events: list[Event] = []
        self.clock = FakeClock()
        self.policy = AimdLimiter(20, 30)
        stack = StackBuilder(
            [adaptive(self.policy)], clock=self.clock, listener=self.events.append, random=lambda: 0.5
        )
        self.transport = world.build(stack, Wire(self._answer))
        self.statuses: list[int] = []
        self.world = world

    def _answer(self, request: httpx.Request) -> httpx.Response:
        now = self.clock.monotonic()
        status = 429 if self.quota.admit(now) else 200
        self.statuses.append(status)
        headers = rate_headers(self.style, self.quota, now, self.clock.utcnow())
        return httpx.Response(status, headers=headers)

    async def use(self, seconds: float) -> None:
        """Send one request after another for that long."""
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            await self.world.send(self.transport, httpx.Request("POST", "https://api.example.com/"))


@pytest.mark.no_cover
@pytest.mark.parametrize("style", ["ietf", "github", "openai"])
async def test_with_headers_no_request_is_refused_and_nearly_all_of_the_quota_is_used(
    world: World, style: str
) -> None:
    server = Server(world, style)
    await server.use(90.0)
    server.statuses.clear()
    await server.use(300.0)
    assert server.statuses.count(429) == 0
    assert server.statuses.count(200) >= 0.9 * 20 * 10
    reasons = {event.reason for event in server.events if isinstance(event, RateChanged)}
    assert "rate limit headers" in reasons


@pytest.mark.no_cover
async def test_a_share_that_others_take_is_left_to_them(world: World) -> None:
    server = Server(world, "ietf")
    await server.use(30.0)
    for _ in range(10):
        for _ in range(10):
            server.quota.admit(server.clock.monotonic())
        await server.use(30.0 - server.clock.monotonic() % 30)
    assert server.statuses.count(429) == 0
    assert server.policy.rate < 20 / 30


async def test_headers_that_contradict_themselves_are_no_longer_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(world, "github")
    server.quota.time_window = 12.0
    await server.use(60.0)
    read: list[Callable[..., object]] = []
    monkeypatch.setattr("stkai.transports._limits.pace.quota.read_rate_limit", read.append)
    await server.use(10.0)
    assert not read


def test_an_update_lowers_the_rate_within_a_window_to_the_new_quota() -> None:
    one = Sender(6000, WINDOW, floor_share=0.5)
    for second in range(9):
        one.accept(float(second), reading=Reading("", 6000, 5999 - second, WINDOW - second, WINDOW))
    assert one.rate > 50.0
    one.source.update(Limits(60, WINDOW))
    assert one.look(20.0) <= 1.0


def test_a_described_quota_of_a_few_requests_per_hour_is_kept() -> None:
    one = Sender()
    for second in range(9):
        one.accept(float(second), reading=Reading("", 10, 9, 3600.0 - second, 3600.0))
    assert one.rate <= 10 / 3600
