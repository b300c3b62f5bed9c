"""What is found out about a quota that was not given, and how an adaptive pace uses that."""

import math

import httpx
import pytest

from stkai import AimdLimiter
from stkai.transports import Answer, Turn
from stkai.transports._limits.pace.headers import Reading
from stkai.transports._limits.pace.quota import KnownQuota
from stkai.transports._limits.sources import Limits

from ....support.sender import Sender, date, quota_headers


def unknown() -> KnownQuota:
    return KnownQuota(None, None)


def described(headers: dict[str, str]) -> Reading | None:
    """What a sender that knows nothing reads in these headers."""
    return unknown().read(httpx.Response(200, headers=headers), date())


def send(one: Sender, now: float, count: int) -> None:
    """Send `count` requests at `now`, each answered at once, whatever the rate is."""
    for _ in range(count):
        one.force(now)
        one.accept(now)


def test_a_program_that_stood_still_for_an_hour_keeps_its_estimate() -> None:
    one = Sender()
    send(one, 0.0, 40)
    one.force(1.0)
    one.refuse(1.0, asked=59.0)
    found = one.rate
    turns = [Turn() for _ in range(20)]
    assert max(one.wait(61.0, turn) for turn in turns) > 0
    for turn in turns[-2:]:
        one.wait(3661.0, turn)
    assert found <= one.rate < 2 * found


def test_the_first_refusal_gives_a_first_estimate_of_the_share() -> None:
    one = Sender()
    send(one, 0.0, 40)
    one.force(1.0)
    change = one.refuse(1.0, asked=59.0)
    # Forty in a window that is over in 59 seconds.
    assert one.rate == pytest.approx(40 / 60, rel=0.02)
    assert change is not None
    assert "estimate of the quota" in change.reason
    assert not one.take(59.9)


def test_an_implausible_wait_does_not_lower_the_first_estimate() -> None:
    one = Sender()
    for second in range(40):
        send(one, float(second), 1)
    one.refuse(40.0, asked=86400.0)
    one.refuse(200.0, asked=60.0)
    one.accept(300.0)
    assert one.rate == pytest.approx(1.0, rel=0.1)


def test_the_longest_wait_that_a_server_asks_for_is_the_window() -> None:
    quota = unknown()
    assert quota.window == 60.0
    for asked in (40.0, 110.0, 20.0, 0.0, 1e9):
        quota.asked(asked)
    assert quota.window == 110.0
    for _ in range(8):
        quota.asked(45.0)
    assert quota.window == 45.0


def test_a_bucket_that_asks_for_a_second_does_not_make_the_window_a_second() -> None:
    quota = unknown()
    for _ in range(8):
        quota.asked(1.0)
    assert quota.window == 30.0


def test_the_counts_are_kept_when_the_window_turns_out_to_be_different() -> None:
    one = Sender()
    send(one, 10.0, 50)
    one.force(20.0)
    one.refuse(20.0, asked=600.0)
    assert one.source.quota.window == 600.0
    assert one.source._windowed.history.past(20.0, cold=False).successes == 50


@pytest.mark.parametrize(
    ("reset", "window"), [(0.8, 1.0), (12.0, 30.0), (59.0, 60.0), (61.0, 60.0), (1200.0, 1800.0)]
)
def test_a_reset_without_a_window_implies_the_shortest_usual_window_that_fits(
    reset: float, window: float
) -> None:
    reading = described(
        {"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "50", "X-RateLimit-Reset": f"{reset}"}
    )
    assert reading is not None
    assert reading.window == window


def test_a_window_that_the_server_states_is_used_as_it_is() -> None:
    reading = Reading("", 100.0, 50.0, 30.0, 45.0)
    assert described(quota_headers(reading)) == reading


def test_headers_give_the_quota() -> None:
    one = Sender()
    for second in range(9):
        now = float(second)
        if one.take(now):
            one.accept(now, reading=Reading("default", 600.0, 590.0 - second, 60.0 - second, 60.0))
    assert one.source.quota.ceiling == 10.0
    assert one.source.quota.window == 60.0
    assert 0 < one.rate <= 10.0
    assert str(one.source) == "found: 600, 60"


def in_windows_of(window: float, until: float, *, moves_at: float = math.inf) -> Sender:
    """A sender to a server that describes 100 requests per window, but not how long it is, until an instant.

    From `moves_at` on, the end that the server announces is always 9 seconds away, though no window has ended.
    """
    one = Sender()
    for second in range(int(until)):
        now = float(second)
        left = window - now % window if now < moves_at else 9.0
        triple = {"Limit": 100.0, "Remaining": 100.0 * left / window, "Reset": left}
        one.observe(200, now, now, {f"X-RateLimit-{name}": f"{value:g}" for name, value in triple.items()})
    return one


@pytest.mark.parametrize("window", [10.0, 15.0, 20.0, 120.0])
def test_a_window_that_is_no_usual_one_is_found_when_the_next_begins(window: float) -> None:
    one = in_windows_of(window, 2.2 * window)
    assert str(one.source) == f"found: 100, {window:g}"
    assert one.source.quota.ceiling == 100 / window


@pytest.mark.parametrize(
    ("between", "reset", "window"),
    [
        (9.25, 9.0, 10.0),
        (19.25, 20.0, 20.0),
        (19.0, 21.0, 20.0),
        (20.7, 20.0, 21.0),
        (2.0, 45.0, 60.0),
        (150.0, 121.0, 150.0),
    ],
)
def test_a_window_seen_counts_if_the_resets_fit_and_no_usual_one_is_as_short(
    between: float, reset: float, window: float
) -> None:
    quota = unknown()
    quota.ended(between, 0.0)
    headers = {"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "50", "X-RateLimit-Reset": f"{reset}"}
    reading = quota.read(httpx.Response(200, headers=headers), date())
    assert reading is not None
    assert reading.window == window


def test_headers_that_contradict_themselves_no_longer_limit_the_rate() -> None:
    one = in_windows_of(60.0, 20.0)
    assert one.source.quota.ceiling == 100 / 60
    one = in_windows_of(60.0, 40.0, moves_at=20.0)
    assert not one.source._windowed.guide.listening
    one.hold_back(40.0)
    assert one.look(400.0) > 2.0


@pytest.mark.parametrize(("window", "until"), [(60.0, 20.0), (45.0, 40.0)])
def test_slow_answers_leave_the_quota_with_no_window_longer_than_a_reset(window: float, until: float) -> None:
    one = in_windows_of(window, until)
    assert str(one.source) == "found: 100, 60"
    headers = {"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "50", "X-RateLimit-Reset": "3"}
    for _ in range(2):
        one.observe(200, until + 3.0, until, headers)
    assert not one.source._windowed.guide.listening
    assert str(one.source) == f"found: 100, {window:g}"


def test_an_end_that_moves_back_is_no_window() -> None:
    quota = unknown()
    quota.ended(-5.0, 0.0)
    quota.ended(20.0, 20.0)
    assert quota._between == math.inf


def test_a_pace_without_numbers_says_what_it_found() -> None:
    one = Sender()
    assert str(one.source) == "quota not found yet"
    send(one, 0.0, 10)
    one.refuse(1.0, asked=59.0)
    assert str(one.source) == "found: time_window=59"


# Another quota


@pytest.mark.parametrize("quota", [50, 200])
def test_a_sender_gets_the_same_share_of_another_quota(quota: float) -> None:
    one = Sender(100, 60).settle()
    rate = one.rate
    one.source.update(Limits(quota, 60))
    assert one.rate == pytest.approx(rate * quota / 100)
    assert one.source.quota.ceiling == quota / 60


def test_the_start_goes_on_to_the_new_quota() -> None:
    one = Sender(100, 60)
    one.source.update(Limits(1000, 60))
    one.hold_back(0.0)
    assert one.look(120.0) == pytest.approx(1000 / 60)


def test_plain_aimd_regains_the_new_quota_at_its_own_rate() -> None:
    one = Sender(100, 60, plain=(0.5, 0.1))
    one.source.update(Limits(1000, 60))
    assert one.rate == pytest.approx(1000 / 60)
    one.refuse(0.0)
    one.source.mode.release(0.0, 60.0, waiting=True)
    assert one.rate == pytest.approx(0.6 * 1000 / 60)


@pytest.mark.parametrize(("numbers", "share"), [((2, 1.0), 0.98), ((50, 1.0), 0.998), ((100, 60.0), 0.98)])
def test_a_program_leaves_a_fiftieth_of_the_quota_to_others_and_at_most_a_tenth_per_second(
    numbers: tuple[float, float], share: float
) -> None:
    quota = KnownQuota(*numbers, leaves_some=True)
    assert quota.most == pytest.approx(share * quota.ceiling)
    assert KnownQuota(*numbers).most == quota.ceiling


@pytest.mark.no_cover
def test_a_program_alone_goes_at_the_rate_that_leaves_some() -> None:
    limiter = AimdLimiter(120, 60)
    now, sent = 0.0, 0
    while now < 600.0:
        turn = Turn()
        while isinstance(wait := limiter.ask(turn, now), float) and wait > 0:
            now += min(wait, turn.nap)
        sent += now >= 300.0
        answer = Answer(now, now, httpx.Response(200), None, date, 0.5)
        limiter.learn(turn, answer)
    assert limiter.rate == 2.0
    assert 0.975 * 600 < sent < 0.985 * 600
