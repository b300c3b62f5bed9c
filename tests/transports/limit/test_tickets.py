"""The queue of tickets: which request may go when; numbers only."""

import gc
import math
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai import AimdLimiter, ConfigurationError, TokenBucket
from stkai.transports import Answer, Context, Turn
from stkai.transports._limit.tickets import TICK, TicketQueue, _forget_all_waiters

from ...support.crowd import Waiter, drive, most_in_excess

rates = st.floats(0.01, 10_000)
bursts = st.floats(1, 50)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def bucket(rate: float = 1.0, burst: float = 1.0) -> TokenBucket:
    return TokenBucket(rate, 1.0, burst=burst, max_wait_time=None)


def rounding(rate: float) -> float:
    """Permits; the tolerance of the arithmetic."""
    return 1e-4 + 2 * TICK * rate


def arrivals(gaps: list[float], rate: float) -> list[Waiter]:
    """Waiters that arrive one after the other, at these intervals, counted in permits."""
    now, waiters = 0.0, []
    for gap in gaps:
        now += gap / rate
        waiters.append(Waiter(now))
    return waiters


gap_lists = st.lists(
    st.sampled_from([0.0, 0.0, 0.3, 1.0, 7.5, 60.0]) | st.floats(0, 3), min_size=1, max_size=40
)


@given(rates, bursts, gap_lists)
def test_no_window_of_time_gets_more_than_the_rate_plus_one_burst(
    rate: float, burst: float, gaps: list[float]
) -> None:
    gone = drive(bucket(rate, burst), arrivals(gaps, rate))
    assert most_in_excess([waiter.went for waiter in gone], rate) <= burst + rounding(rate)


@given(rates, bursts, gap_lists)
def test_everybody_goes_in_order_of_arrival_at_the_time_first_given_after_one_sleep(
    rate: float, burst: float, gaps: list[float]
) -> None:
    waiters = arrivals(gaps, rate)
    assert drive(bucket(rate, burst), waiters) == waiters
    assert all(waiter.went == waiter.told for waiter in waiters)
    assert all(waiter.sleeps == (waiter.went > waiter.arrives) for waiter in waiters)


@given(rates, bursts, gap_lists)
def test_no_permit_is_withheld_from_waiters(rate: float, burst: float, gaps: list[float]) -> None:
    """The times are the earliest that a bucket of that size allows."""
    full, last = burst, 0.0
    for waiter in drive(bucket(rate, burst), arrivals(gaps, rate)):
        full, last = min(burst, full + (waiter.arrives - last) * rate), waiter.arrives
        full -= 1
        due = waiter.arrives + max(0.0, -full) / rate
        assert waiter.went == pytest.approx(due, abs=rounding(rate) / rate)


@given(rates, bursts, st.integers(1, 60), st.data())
def test_waiters_that_wake_up_to_a_quarter_second_late_lose_no_permit(
    rate: float, burst: float, count: int, data: st.DataObject
) -> None:
    waiters = [Waiter(0.0, lateness=data.draw(st.floats(0, 0.25))) for _ in range(count)]
    drive(bucket(rate, burst), waiters)
    assert all(waiter.sleeps <= 1 for waiter in waiters)
    for number, waiter in enumerate(waiters, start=1):
        due = max(0.0, number - burst) / rate
        assert waiter.went <= due + waiter.lateness + rounding(rate) / rate


@given(rates, bursts, gap_lists, st.data())
def test_requests_told_to_wait_too_long_take_nothing(
    rate: float, burst: float, gaps: list[float], data: st.DataObject
) -> None:
    crowd = arrivals(gaps, rate)
    for waiter in crowd:
        waiter.limit = data.draw(st.just(math.inf) | st.floats(0, 5).map(lambda permits: permits / rate))
    gone = drive(bucket(rate, burst), crowd)
    assert all(waiter.went <= waiter.arrives + waiter.limit for waiter in gone)
    alone = [Waiter(waiter.arrives) for waiter in gone]
    drive(bucket(rate, burst), alone)
    for waiter, same in zip(gone, alone, strict=True):
        assert waiter.went == pytest.approx(same.went, abs=rounding(rate) / rate)


@given(rates, bursts, st.integers(1, 20), gap_lists, st.data())
def test_sleepers_go_when_they_were_told_whatever_others_do(
    rate: float, burst: float, count: int, gaps: list[float], data: st.DataObject
) -> None:
    patience = st.just(math.inf) | st.floats(0, 20).map(lambda permits: permits / rate)
    crowd = [Waiter(0.0, patience=data.draw(patience)) for _ in range(count)]
    others = arrivals(gaps, rate)
    for waiter in others:
        waiter.patience = data.draw(patience)
    queue = bucket(rate, burst)
    gone = drive(queue, crowd + others)
    assert {waiter for waiter in crowd + others if waiter.patience == math.inf} <= set(gone)
    assert queue.waiting == 0
    assert most_in_excess([waiter.went for waiter in gone], rate) <= burst + 0.25 * rate + rounding(rate)
    for waiter in set(crowd) & set(gone):
        assert waiter.went == pytest.approx(waiter.told, abs=rounding(rate) / rate)


def test_a_returned_permit_goes_to_the_next_in_line() -> None:
    queue = bucket()
    assert queue.take(0.0)
    first, second = Turn(), Turn()
    assert (queue.remaining(first, 0.0), queue.remaining(second, 0.0)) == (1.0, 2.0)
    queue.cancel(first, 0.5)
    assert queue.remaining(second, 0.5) == 0.5
    assert queue.remaining(second, 1.0) == 0.0


def test_the_place_of_a_waiter_that_left_goes_to_the_next_arrival_while_others_sleep() -> None:
    queue = bucket()
    assert queue.take(0.0)
    sleepers = [Turn() for _ in range(3)]
    assert [queue.remaining(ticket, 0.0) for ticket in sleepers] == [1.0, 2.0, 3.0]
    queue.cancel(sleepers[1], 0.5)
    new, last = Turn(), Turn()
    assert queue.remaining(new, 0.5) == 1.5
    assert queue.remaining(last, 0.5) == 3.5
    assert queue.remaining(sleepers[0], 1.0) == 0.0
    assert queue.remaining(new, 2.0) == 0.0
    assert queue.remaining(sleepers[2], 3.0) == 0.0


def test_a_place_whose_time_has_passed_is_not_reused() -> None:
    queue = bucket()
    assert queue.take(0.0)
    left, sleeper, new = Turn(), Turn(), Turn()
    assert (queue.remaining(left, 0.0), queue.remaining(sleeper, 0.0)) == (1.0, 2.0)
    queue.cancel(left, 0.5)
    assert queue.remaining(new, 1.9) > 0
    assert queue.remaining(sleeper, 2.0) == 0.0


def test_a_place_is_not_reused_once_somebody_behind_has_moved_up() -> None:
    queue = bucket()
    assert queue.take(0.0)
    left, sleeper, new = Turn(), Turn(), Turn()
    assert (queue.remaining(left, 0.0), queue.remaining(sleeper, 0.0)) == (1.0, 2.0)
    queue.cancel(left, 0.25)
    assert queue.remaining(sleeper, 0.5) == 0.5
    assert queue.remaining(new, 0.5) == 1.5
    assert queue.remaining(sleeper, 1.0) == 0.0


def test_ten_thousand_waiters_sleep_once_each_and_go_in_order() -> None:
    crowd = [Waiter(0.0) for _ in range(10_000)]
    assert drive(bucket(rate=1000.0), crowd) == crowd
    assert [waiter.went for waiter in crowd] == pytest.approx([number / 1000 for number in range(10_000)])
    assert sum(waiter.sleeps for waiter in crowd) == 9_999


def test_a_crowd_with_little_patience_does_not_stop_the_traffic() -> None:
    crowd = [Waiter(number / 10, patience=10.0) for number in range(600)]
    gone = drive(bucket(), crowd)
    assert [waiter.went for waiter in gone[:61]] == pytest.approx(range(61), abs=0.5)


def test_a_turn_that_comes_back_with_its_number_goes_first() -> None:
    queue = bucket()
    number = queue.take(0.0)
    waiting = Turn()
    assert queue.remaining(waiting, 0.0) == 1.0
    again = Turn(number=number)
    assert queue.remaining(again, 0.5) == 0.5
    assert queue.remaining(waiting, 1.0) == 1.0
    assert queue.remaining(again, 1.0) == 0.0
    assert queue.remaining(waiting, 2.0) == 0.0


def test_an_unknown_ticket_is_neither_stranded_nor_served_in_place_of_another() -> None:
    queue = bucket()
    stale, other = Turn(), Turn()
    assert queue.take(0.0)
    assert queue.remaining(stale, 0.0) == 1.0
    queue.forget_waiters()
    assert queue.remaining(other, 0.0) == 1.0
    assert queue.remaining(stale, 1.0) == 0.0
    assert queue.waiting == 1
    assert queue.remaining(other, 2.0) == 0.0


def test_a_waiter_that_never_wakes_does_not_hold_up_the_others_for_ever() -> None:
    queue = bucket()
    lost, others = Turn(), [Waiter(0.5 * number) for number in range(1, 20)]
    assert queue.take(0.0)
    assert queue.remaining(lost, 0.0) == 1.0
    gone = drive(queue, others)
    assert gone == others
    assert gone[-1].went < 1 + 5 + len(others) + 2
    assert queue.remaining(lost, 100.0) == 0.0


def test_a_waiter_that_woke_far_too_late_still_goes_before_later_ones() -> None:
    queue = bucket()
    late, other = Turn(), Turn()
    assert queue.take(0.0)
    assert queue.remaining(late, 0.0) == 1.0
    assert queue.remaining(other, 0.0) == 2.0
    assert queue.remaining(other, 7.0) == 0.0
    third = Turn()
    assert queue.remaining(third, 7.0) == pytest.approx(0.75)
    assert queue.remaining(late, 7.5) == pytest.approx(0.25)
    assert queue.remaining(third, 7.75) == pytest.approx(1.0)
    assert queue.remaining(late, 7.75) == 0.0


def test_two_attempts_of_one_call_may_wait_at_once() -> None:
    queue = bucket()
    number = queue.take(0.0)
    pair = [Turn(number=number), Turn(number=number)]
    behind = Turn()
    assert [queue.remaining(ticket, 0.0) for ticket in [*pair, behind]] == [1.0, 2.0, 3.0]
    assert [queue.remaining(ticket, 0.5) for ticket in [*pair, behind]] == [0.5, 1.5, 2.5]
    queue.cancel(pair[1], 0.5)
    assert queue.waiting == 2
    assert queue.remaining(behind, 0.5) == 1.5
    assert queue.remaining(pair[0], 1.0) == 0.0


def test_leaving_twice_or_after_having_gone_changes_nothing() -> None:
    queue = bucket()
    gone, waiting = Turn(), Turn()
    assert queue.remaining(gone, 0.0) == 0.0
    assert queue.remaining(waiting, 0.0) == 1.0
    queue.cancel(gone, 0.5)
    queue.cancel(gone, 0.5)
    queue.cancel(Turn(), 0.5)
    assert queue.waiting == 1
    assert queue.remaining(waiting, 0.5) == 0.5


def granted(queue: TokenBucket, count: int) -> tuple[list[Turn], float]:
    """Turns that got their permits as soon as they could, and when the last one did."""
    turns, now = [], 0.0
    for _ in range(count):
        turn = Turn()
        while wait := queue.ask(turn, now):
            now += wait
        turns.append(turn)
    return turns, now


@pytest.mark.parametrize("burst", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("kept", [0.01, 0.2, 1.0, 60.0])
def test_permits_that_were_kept_and_given_back_allow_no_more_than_a_burst_of_them_at_once(
    burst: float, kept: float
) -> None:
    queue = bucket(20.0, burst)
    turns, now = granted(queue, 100)
    at_once = 0
    for turn in turns:
        queue.leave(turn, now + kept)
        at_once += queue.ask(turn, now + kept) == 0
    assert at_once <= 2 * burst
    gone = now + kept
    for turn in turns:
        while not turn.granted and (wait := queue.ask(turn, gone)):
            gone += wait
    assert gone <= now + kept + 5.0


@pytest.mark.parametrize(("burst", "returned"), [(1.0, 1), (10.0, 5)])
def test_permits_that_are_given_back_soon_are_not_lost(burst: float, returned: int) -> None:
    queue = bucket(1.0, burst)
    turns, now = granted(queue, 30)
    for turn in turns[-returned:]:
        queue.leave(turn, now + 0.4)
    assert [queue.take(now + 0.4) > 0 for _ in range(returned + 1)] == [True] * returned + [False]


@given(rates, bursts, st.integers(1, 60), st.floats(1, 1e6))
def test_a_clock_that_jumps_neither_bursts_beyond_a_quarter_second_nor_stalls(
    rate: float, burst: float, count: int, jump: float
) -> None:
    queue = bucket(rate, burst)
    tickets = [Turn() for _ in range(count)]
    waiting = [ticket for ticket in tickets if queue.remaining(ticket, 0.0)]
    at_once = [ticket for ticket in waiting if queue.remaining(ticket, jump) == 0.0]
    assert len(at_once) <= burst + 0.25 * rate + rounding(rate)
    late = [ticket for ticket in waiting if ticket not in at_once]
    assert drive_on(queue, late, jump) <= jump + (len(late) + rounding(rate)) / rate + 1e-6


def drive_on(queue: TicketQueue, tickets: list[Turn], now: float) -> float:
    for ticket in tickets:
        while wait := queue.remaining(ticket, now):
            now += wait
    return now


def test_a_clock_that_goes_back_counts_as_standing_still() -> None:
    queue = bucket()
    ticket = Turn()
    assert queue.take(10.0)
    assert queue.remaining(ticket, 9.0) == 1.0
    assert queue.remaining(ticket, 11.0) == 0.0


def test_a_sleep_is_never_too_short_to_move_a_clock_that_has_run_for_years() -> None:
    queue, now = bucket(rate=1e8), 1e9
    assert queue.take(now)
    wait = queue.remaining(Turn(), now)
    assert wait == TICK
    assert now + wait > now


def test_the_burst_is_at_least_one_permit_so_a_low_rate_cannot_deadlock() -> None:
    for queue in (TokenBucket(0.1, 60.0), AimdLimiter(0.1, 60.0), AimdLimiter(0.5, 60.0, min_rate_floor=0.1)):
        assert queue.burst >= 1
        gone = drive(queue, [Waiter(0.0), Waiter(0.0)])
        assert len(gone) == 2


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0.01, 20), st.floats(0, 30)), min_size=1, max_size=5),
)
def test_a_pause_holds_everyone_including_those_already_asleep(
    count: int, refusals: list[tuple[float, float]]
) -> None:
    limiter = AimdLimiter(600, 60)
    waiting = [Turn() for _ in range(count)]
    for ticket in waiting:
        limiter.remaining(ticket, 0.0)
    now, until = 0.0, 0.0
    for later, asked in refusals:
        now += later
        limiter.refused(now, sent=now, asked=asked, chance=0.0)
        until = max(until, now + asked)
    for instant in (now, (now + until) / 2, until - 1e-6):
        if now <= instant < until:
            assert not limiter.take(instant)
            assert all(instant + limiter.remaining(ticket, instant) >= until - 1e-9 for ticket in waiting)


def test_a_cut_applies_to_those_who_wait() -> None:
    limiter = AimdLimiter(60, 60, penalty_factor=0.5, recovery_factor=0.05)
    while limiter.take(0.0):
        pass
    tickets = [Turn() for _ in range(4)]
    before = [limiter.remaining(ticket, 0.0) for ticket in tickets]
    limiter.refused(0.0, sent=0.0, asked=0.0, chance=0.0)
    after = [limiter.remaining(ticket, 0.0) for ticket in tickets]
    assert after == pytest.approx([2 * wait for wait in before])


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "10", None])
@pytest.mark.parametrize("name", ["max_requests", "time_window", "burst", "max_wait_time"])
def test_an_invalid_number_is_refused_by_name(name: str, value: object) -> None:
    arguments: dict[str, Any] = {"max_requests": 10, "time_window": 1, name: value}
    if value is None and name in {"burst", "max_wait_time"}:
        TokenBucket(**arguments)
        return
    with pytest.raises(ConfigurationError, match=f"^{name} must be a positive, finite number, not"):
        TokenBucket(**arguments)


def test_none_means_waiting_for_ever() -> None:
    with pytest.raises(ConfigurationError, match="None waits as long as it takes"):
        TokenBucket(10, 1, max_wait_time=math.inf)


@pytest.mark.parametrize("methods", ["POST", [1], None, []])
def test_methods_are_a_set_of_names(methods: object) -> None:
    arguments: dict[str, Any] = {"max_requests": 10, "time_window": 1, "methods": methods}
    with pytest.raises(
        ConfigurationError, match=r"methods must be HTTP method names such as \{'POST', 'PUT'\}"
    ):
        TokenBucket(**arguments)


def test_threads_that_ask_at_the_same_time_get_no_permit_twice() -> None:
    queue = bucket(rate=1.0, burst=500.0)
    start = threading.Barrier(8)
    numbers: list[int] = []

    def grab() -> None:
        start.wait()
        while number := queue.take(0.0):
            numbers.append(number)

    threads = [threading.Thread(target=grab) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(numbers) == len(set(numbers)) == 500


def in_a_child(function: Callable[[], str]) -> str:
    """The function's result in a forked child, which is killed if it hangs."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns about a fork while threads run, which is what is tested here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            os.write(writing, function().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


@needs_fork
def test_a_child_forked_while_a_thread_holds_the_lock_is_not_stuck_and_has_an_empty_queue() -> None:
    queue = bucket(burst=2.0)
    waiting = [Turn() for _ in range(10)]
    for ticket in waiting:
        queue.remaining(ticket, 0.0)
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with queue._lock:
            locked.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait()
    try:
        answer = in_a_child(lambda: f"{queue.waiting} waiting, wait {queue.remaining(Turn(), 0.0):g}")
    finally:
        done.set()
        holder.join()
    assert answer == "0 waiting, wait 1"
    assert queue.waiting == 8


def test_after_a_fork_no_queue_has_waiters() -> None:
    queues = [bucket(), AimdLimiter(10, 1)]
    for queue in queues:
        while queue.take(0.0):
            pass
        queue.remaining(Turn(), 0.0)
    _forget_all_waiters()
    assert [queue.waiting for queue in queues] == [0, 0]


@needs_fork
@pytest.mark.parametrize("make", [TokenBucket, AimdLimiter])
def test_a_signal_handler_that_interrupts_the_arithmetic_goes_at_once_and_is_paid_for_later(
    make: Callable[[float, float], TicketQueue],
) -> None:
    """In a child, which is killed if it waits for the lock that its own thread holds."""

    def interrupted() -> str:
        queue: Any = make(10, 10.0)
        asked: list[float] = []
        release = queue._release

        def interrupt(seconds: float, unpaused: float) -> float:
            turn = Turn()
            asked.append(queue.ask(turn, 1.0))
            response = httpx.Response(200)
            queue.learn(turn, Answer(1.0, 1.0, response, None, lambda: datetime.now(UTC), 0.5))
            queue.leave(turn, 1.0)
            queue.ask(Turn(), 1.0)
            permits: float = release(seconds, unpaused)
            return permits

        while not queue.ask(Turn(), 0.0):
            pass
        queue._release = interrupt
        waiting = queue.ask(Turn(), 1.0)
        return f"{asked}, {waiting > 0}"

    # Asked while a second's permits are added: one is released, and one is owed to the handler, which gave one back.
    assert in_a_child(interrupted) == "[0.0], True"


@needs_fork
def test_children_draw_different_jitter() -> None:
    def draw() -> str:
        return repr([Context().random() for _ in range(3)])

    assert len({in_a_child(draw), in_a_child(draw), draw()}) == 3


def test_an_unused_queue_is_not_kept_for_the_next_fork() -> None:
    queue = bucket()
    reference = weakref.ref(queue)
    del queue
    gc.collect()
    assert reference() is None
