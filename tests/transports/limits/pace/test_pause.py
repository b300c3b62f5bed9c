"""How long a refusal stops a sender: all of it, or in a short window only the refused request."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai.transports import Turn

from ....support.sender import Sender, plain, sender


def pause_of(one: Sender, now: float, asked: float | None) -> float:
    """How many seconds no request may go after a refusal at `now`."""
    one.refuse(now, asked=asked)
    return one.source.mode.paused_until - now


def test_a_refusal_pauses_as_long_as_the_server_asked() -> None:
    assert pause_of(sender(), 0.0, 7.0) == 7.0
    one = plain()
    one.refuse(5.0, asked=7.0)
    assert not one.take(11.999)
    turn = Turn()
    assert one.wait(5.0, turn) == 7.0
    assert one.wait(12.0, turn) == 0.0


def test_the_pause_doubles_with_each_refusal_in_a_row_up_to_the_window() -> None:
    one, now, pauses = sender(), 0.0, []
    for _ in range(6):
        pauses.append(pause_of(one, now, 5.0))
        now += pauses[-1]
    assert pauses == [5, 10, 20, 40, 60, 60]
    one.accept(now)
    assert pause_of(one, now, 5.0) == 5


@pytest.mark.parametrize(("window", "longest"), [(60.0, 3600.0), (7200.0, 7200.0)])
@pytest.mark.parametrize("asked", [1e5, 1e12, 1e200])
def test_no_pause_is_longer_than_an_hour_or_the_window(window: float, longest: float, asked: float) -> None:
    one, now = Sender(100, window), 0.0
    for _ in range(12):
        pause = pause_of(one, now, asked)
        assert 120.0 <= pause <= longest
        now += pause
    assert pause == longest


def test_a_wait_of_up_to_the_longest_pause_is_kept_in_full() -> None:
    assert pause_of(sender(), 0.0, 3600.0) == 3600.0
    assert pause_of(sender(), 0.0, 1800.0) == 1800.0


def test_after_an_implausible_wait_one_request_probes() -> None:
    one = sender().settle()
    one.force(0.0)
    one.refuse(0.0, asked=1e9)
    waiters = [Turn() for _ in range(5)]
    assert min(one.wait(0.0, turn) for turn in waiters) == 120.0
    assert [one.wait(120.0, turn) == 0 for turn in waiters] == [True, False, False, False, False]
    assert one.wait(120.0, waiters[1]) > 60.0
    one.accept(121.0, sent=120.0)
    assert one.wait(121.0, waiters[1]) < 60.0


def short_window() -> tuple[Sender, Turn]:
    """A sender of 20 per second after its first request, and the turn of that request."""
    one = Sender(20, 1.0)
    turn = one.take(0.0)
    assert turn is not None
    return one, turn


def again(turn: Turn) -> Turn:
    """The turn of the next attempt of the same call."""
    other = Turn(number=turn.number)
    other.not_before = turn.not_before
    return other


def test_in_a_short_window_only_the_refused_request_waits_as_long_as_asked() -> None:
    one, turn = short_window()
    one.refuse(0.1, sent=0.0, asked=1.0, turn=turn)
    one.accept(0.1, sent=0.0)
    refused, other = again(turn), Turn()
    assert one.wait(0.1, refused) == pytest.approx(1.0)
    assert one.wait(0.1, other) < 0.5
    one.queue.leave(other, 0.1)
    assert one.wait(1.1, refused) == 0.0


def test_in_a_short_window_the_second_refusal_in_a_row_stops_the_others_too() -> None:
    one, turn = short_window()
    one.refuse(0.1, sent=0.0, asked=1.0, turn=turn)
    one.refuse(1.0, sent=0.9, asked=1.0, chance=0.5, turn=turn)
    assert 0.5 <= one.wait(1.0) <= 1.0
    one, turn = short_window()
    one.refuse(0.1, sent=0.0, asked=1.0, turn=turn)
    one.accept(0.9, sent=0.8)
    one.refuse(1.0, sent=0.9, asked=1.0, chance=0.5, turn=turn)
    assert one.wait(1.0) < 0.5


def test_a_long_wait_stops_all_requests_in_a_short_window_as_well() -> None:
    one, turn = short_window()
    one.refuse(0.1, sent=0.0, asked=30.0, turn=turn)
    assert one.wait(0.1) >= 30.0


def test_a_request_that_waits_out_its_refusal_in_a_short_window_goes_first() -> None:
    one, turn = short_window()
    while one.take(0.0):
        pass
    one.refuse(0.1, sent=0.0, asked=1.0, turn=turn)
    others = [Turn() for _ in range(100)]
    for other in others:
        one.wait(0.1, other)
    assert one.wait(1.2, again(turn)) < min(one.wait(1.2, other) for other in others[-50:])


def test_a_wait_beyond_the_window_is_kept_as_asked_and_from_the_third_refusal_on_twice_that() -> None:
    one, now = sender(), 0.0
    for number in range(40):
        pause = pause_of(one, now, 100.0)
        assert pause == pytest.approx(100.0 if number < 2 else 200.0)
        now += pause


def test_senders_outlast_a_ban_that_each_refusal_begins_anew() -> None:
    """As with `continueExceeding` of @fastify/rate-limit."""
    ban, asks, last = 5.0, [(0.1 * number, Sender(50, 5)) for number in range(4)], -math.inf
    for _ in range(40):
        now, one = min(asks, key=lambda ask: ask[0])
        if now >= last + ban > 0.0:
            return
        asks.remove((now, one))
        asks.append((now + pause_of(one, now, ban), one))
        last = now
    pytest.fail("the ban never ended")


def test_a_refusal_of_an_old_request_counts_for_the_pause_but_not_for_the_row() -> None:
    one = sender()
    for _ in range(8):
        one.refuse(1.0, sent=0.5, asked=5.0)
    assert one.source.mode.paused_until == 6.0
    one.refuse(3.0, sent=0.5, asked=5.0)
    assert one.source.mode.paused_until == 8.0


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    one = sender()
    one.refuse(0.0, sent=-1.0, asked=20.0)
    one.refuse(1.0, sent=-1.0, asked=2.0)
    assert one.source.mode.paused_until == 20.0


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1000), st.integers(1, 10))
def test_the_jitter_of_a_pause_is_on_top_and_within_its_bounds(
    chance: float, asked: float, refusals: int
) -> None:
    one = sender()
    for number in range(1, refusals):
        one.refuse(float(number - refusals))
    one.refuse(0.0, asked=asked, chance=chance)
    without = max(asked * (2 if refusals > 2 else 1), min(asked * 2 ** (refusals - 1), 60.0))
    jitter = one.source.mode.paused_until - without
    assert jitter == pytest.approx(chance * min(1 / one.rate, asked / 2 + 1), abs=1e-6)
    assert jitter >= -1e-6


def test_a_longer_wait_changes_the_law_although_its_refusal_is_no_cut() -> None:
    one = Sender()
    for second in range(40):
        one.force(float(second))
        one.accept(float(second))
    one.force(41.0)
    one.refuse(41.0, asked=59.0)
    one.refuse(101.0, sent=100.5, asked=600.0)  # Sent before any success showed that the cut was enough.
    assert one.source._windowed.law.window == 600.0
