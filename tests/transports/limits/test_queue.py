"""The queue of turns: which request may go when; numbers only."""

import gc
import math
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai.transports import Context, Turn
from stkai.transports._limits.queue import Queue
from stkai.transports._limits.sources import TICK, Source
from stkai.transports._limits.sources.request_limits import Rate
from stkai.transports._limits.sources.units import Units

from ...support.crowd import Waiter, arrivals, drive, most_in_excess, took
from ...support.threads import together

rates = st.floats(0.01, 10_000)
bursts = st.floats(1, 50)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def bucket(rate: float = 1.0, burst: float = 1.0) -> Queue:
    return Queue(Rate(rate, burst))


def rounding(rate: float) -> float:
    """Permits; the tolerance of the arithmetic."""
    return 1e-4 + 2 * TICK * rate


def seconds(queue: Queue, turn: Turn, now: float) -> float:
    """How long the turn has to wait."""
    wait = queue.ask(turn, now)
    assert isinstance(wait, float)
    return wait


def periodic_asks(waiter: Waiter) -> float:
    """How often it may look whether something has changed: once a second."""
    return 1.001 * (waiter.went - waiter.arrives)


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
def test_all_go_in_order_of_arrival_at_the_time_first_given_after_one_sleep(
    rate: float, burst: float, gaps: list[float]
) -> None:
    waiters = arrivals(gaps, rate)
    assert drive(bucket(rate, burst), waiters) == waiters
    assert all(waiter.went == pytest.approx(waiter.promised, abs=1e-6) for waiter in waiters)
    assert all(waiter.sleeps <= 1 + periodic_asks(waiter) for waiter in waiters)


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
def test_waiters_that_wake_up_to_fifty_milliseconds_late_lose_no_permit(
    rate: float, burst: float, count: int, data: st.DataObject
) -> None:
    waiters = [Waiter(0.0, lateness=data.draw(st.floats(0, 0.05))) for _ in range(count)]
    drive(bucket(rate, burst), waiters)
    assert all(waiter.sleeps <= 1 + periodic_asks(waiter) for waiter in waiters)
    for number, waiter in enumerate(waiters, start=1):
        due = max(0.0, number - burst) / rate
        assert waiter.went <= due + waiter.lateness + rounding(rate) / rate


@given(rates, bursts, gap_lists, st.data())
def test_requests_that_would_wait_too_long_take_nothing(
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
def test_sleepers_go_at_the_time_given_or_before_whatever_others_do(
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
        assert waiter.went <= waiter.promised + rounding(rate) / rate


def test_the_place_of_a_waiter_that_left_goes_to_the_next_arrival_while_others_sleep() -> None:
    queue = bucket()
    assert took(queue, 0.0)
    sleepers = [Turn() for _ in range(3)]
    assert [queue.ask(turn, 0.0) for turn in sleepers] == [1.0, 2.0, 3.0]
    queue.leave(sleepers[1], 0.5)
    new, last = Turn(), Turn()
    assert queue.ask(new, 0.5) == 1.5
    assert queue.ask(last, 0.5) == 3.5
    assert queue.ask(sleepers[0], 1.0) == 0.0
    assert queue.ask(new, 2.0) == 0.0
    assert queue.ask(sleepers[2], 3.0) == 0.0


def test_a_permit_that_the_next_sleeper_will_need_is_not_given_to_another() -> None:
    queue = bucket()
    assert took(queue, 0.0)
    left, sleeper, new = Turn(), Turn(), Turn()
    assert (queue.ask(left, 0.0), queue.ask(sleeper, 0.0)) == (1.0, 2.0)
    queue.leave(left, 0.5)
    assert queue.ask(new, 1.9) != 0
    assert queue.ask(sleeper, 2.0) == 0.0


def test_an_unclaimed_permit_goes_to_the_turn_that_asks() -> None:
    queue = bucket(burst=5.0)
    for _ in range(5):
        assert took(queue, 0.0)
    left, sleeper, new = Turn(), Turn(), Turn()
    assert (queue.ask(left, 0.0), queue.ask(sleeper, 0.0)) == (1.0, 2.0)
    queue.leave(left, 0.5)
    assert queue.ask(new, 1.0) == 0.0
    assert queue.ask(sleeper, 2.0) == 0.0


def test_a_place_is_not_reused_once_a_turn_behind_it_has_moved_up() -> None:
    queue = bucket()
    assert took(queue, 0.0)
    left, sleeper, new = Turn(), Turn(), Turn()
    assert (queue.ask(left, 0.0), queue.ask(sleeper, 0.0)) == (1.0, 2.0)
    queue.leave(left, 0.25)
    assert queue.ask(sleeper, 0.5) == 0.5
    assert queue.ask(new, 0.5) == 1.5
    assert queue.ask(sleeper, 1.0) == 0.0


@pytest.mark.no_cover
def test_ten_thousand_waiters_sleep_a_few_times_each_and_go_in_order() -> None:
    crowd = [Waiter(0.0) for _ in range(10_000)]
    assert drive(bucket(rate=1000.0), crowd) == crowd
    assert [waiter.went for waiter in crowd] == pytest.approx([number / 1000 for number in range(10_000)])
    assert sum(waiter.sleeps for waiter in crowd) <= 60_000


@pytest.mark.no_cover
def test_a_crowd_with_little_patience_does_not_stop_the_traffic() -> None:
    crowd = [Waiter(number / 10, patience=10.0) for number in range(600)]
    gone = drive(bucket(), crowd)
    assert [waiter.went for waiter in gone[:61]] == pytest.approx(range(61), abs=0.5)


@pytest.mark.no_cover
@pytest.mark.parametrize("rate", [1.0, 50.0])
def test_when_the_front_of_a_long_line_gives_up_those_behind_have_all_permits_soon(rate: float) -> None:
    crowd = [Waiter(0.0, patience=2.0) for _ in range(1000)] + [Waiter(0.0) for _ in range(100)]
    gone = drive(bucket(rate), crowd)
    assert gone[-1].went < 2.0 + 1.5 + 100 / rate + 1


def test_a_turn_that_comes_back_with_its_number_goes_first() -> None:
    queue = bucket()
    number = took(queue, 0.0)
    waiting = Turn()
    assert queue.ask(waiting, 0.0) == 1.0
    again = Turn(number=number)
    assert queue.ask(again, 0.5) == 0.5
    assert queue.ask(waiting, 1.0) == 1.0
    assert queue.ask(again, 1.0) == 0.0
    assert queue.ask(waiting, 2.0) == 0.0


def test_an_unknown_turn_is_neither_stranded_nor_served_in_place_of_another() -> None:
    queue = bucket()
    stale, other = Turn(), Turn()
    assert took(queue, 0.0)
    assert queue.ask(stale, 0.0) == 1.0
    queue.sources[0].order.forget()
    assert queue.ask(other, 0.0) == 1.0
    assert queue.ask(stale, 1.0) == 0.0
    assert queue.waiting == 1
    assert queue.ask(other, 2.0) == 0.0


def test_a_waiter_that_never_wakes_does_not_hold_up_the_others_for_ever() -> None:
    queue = bucket()
    lost, others = Turn(), [Waiter(0.5 * number) for number in range(1, 20)]
    assert took(queue, 0.0)
    assert queue.ask(lost, 0.0) == 1.0
    gone = drive(queue, others)
    assert gone == others
    assert gone[-1].went < 1 + 5 + len(others) + 2
    assert queue.ask(lost, 100.0) == 0.0


def test_a_waiter_that_woke_far_too_late_still_goes_before_later_ones() -> None:
    queue = bucket()
    late, other = Turn(), Turn()
    assert took(queue, 0.0)
    assert queue.ask(late, 0.0) == 1.0
    assert queue.ask(other, 0.0) == 2.0
    assert queue.ask(other, 7.0) == 0.0
    third = Turn()
    assert queue.ask(third, 7.0) == pytest.approx(0.95)
    assert queue.ask(late, 7.5) == pytest.approx(0.45)
    assert queue.ask(third, 7.95) == pytest.approx(1.0)
    assert queue.ask(late, 7.95) == 0.0


def test_two_attempts_of_one_call_may_wait_at_once() -> None:
    queue = bucket()
    number = took(queue, 0.0)
    pair = [Turn(number=number), Turn(number=number)]
    behind = Turn()
    assert [queue.ask(turn, 0.0) for turn in [*pair, behind]] == [1.0, 2.0, 3.0]
    assert [queue.ask(turn, 0.5) for turn in [*pair, behind]] == [0.5, 1.5, 2.5]
    queue.leave(pair[1], 0.5)
    assert queue.waiting == 2
    assert queue.ask(behind, 0.5) == 1.5
    assert queue.ask(pair[0], 1.0) == 0.0


def test_two_attempts_of_one_call_may_leave_together() -> None:
    queue = bucket()
    number = took(queue, 0.0)
    pair = [Turn(number=number), Turn(number=number)]
    behind = Turn()
    assert [queue.ask(turn, 0.0) for turn in [*pair, behind]] == [1.0, 2.0, 3.0]
    for turn in pair:
        queue.leave(turn, 0.5)
    assert queue.ask(behind, 1.0) == 0.0


def test_the_requests_of_a_crowd_that_left_are_not_kept_in_memory() -> None:
    queue = bucket()
    took(queue, 0.0)
    crowd = [Turn(httpx.Request("POST", "http://test", content=bytes(1000))) for _ in range(10)]
    requests = [weakref.ref(turn.request) for turn in crowd]
    for turn in crowd:
        queue.ask(turn, 0.0)
    for turn in crowd[:-1]:
        queue.leave(turn, 0.5)
    del turn, crowd[:-1]
    gc.collect()
    assert [request() is None for request in requests] == [True] * 9 + [False]


def test_leaving_twice_or_after_having_gone_changes_nothing() -> None:
    queue = bucket()
    gone, waiting = Turn(), Turn()
    assert queue.ask(gone, 0.0) == 0.0
    queue.end(gone, 0.0)
    assert queue.ask(waiting, 0.0) == 1.0
    queue.leave(gone, 0.5)
    queue.leave(gone, 0.5)
    queue.leave(Turn(), 0.5)
    assert queue.waiting == 1
    assert queue.ask(waiting, 0.5) == 0.5


def granted(queue: Queue, count: int) -> tuple[list[Turn], float]:
    """Turns that got their permits as soon as they could, and when the last one did."""
    turns, now = [], 0.0
    for _ in range(count):
        turn = Turn()
        while wait := seconds(queue, turn, now):
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
        while not turn.granted and (wait := seconds(queue, turn, gone)):
            gone += wait
    assert gone <= now + kept + 5.0


@pytest.mark.parametrize(("burst", "returned"), [(1.0, 1), (10.0, 5)])
def test_permits_that_are_given_back_soon_are_not_lost(burst: float, returned: int) -> None:
    queue = bucket(1.0, burst)
    turns, now = granted(queue, 30)
    for turn in turns[-returned:]:
        queue.leave(turn, now + 0.4)
    assert [took(queue, now + 0.4) > 0 for _ in range(returned + 1)] == [True] * returned + [False]


@given(rates, bursts, st.integers(1, 60), st.floats(1, 1e6))
def test_a_clock_that_jumps_neither_bursts_beyond_a_quarter_second_nor_stalls(
    rate: float, burst: float, count: int, jump: float
) -> None:
    queue = bucket(rate, burst)
    turns = [Turn() for _ in range(count)]
    waiting = [turn for turn in turns if queue.ask(turn, 0.0)]
    at_once = [turn for turn in waiting if queue.ask(turn, jump) == 0.0]
    assert len(at_once) <= burst + 0.25 * rate + rounding(rate)
    late = [turn for turn in waiting if turn not in at_once]
    assert drive_on(queue, late, jump) <= jump + (len(late) + rounding(rate)) / rate + 1e-6


def drive_on(queue: Queue, turns: list[Turn], now: float) -> float:
    for turn in turns:
        while wait := seconds(queue, turn, now):
            now += wait
    return now


def test_a_clock_that_goes_back_counts_as_standing_still() -> None:
    queue = bucket()
    turn = Turn()
    assert took(queue, 10.0)
    assert queue.ask(turn, 9.0) == 1.0
    assert queue.ask(turn, 11.0) == 0.0


def test_a_sleep_is_never_too_short_to_move_a_clock_that_has_run_for_years() -> None:
    queue, now = bucket(rate=1e8), 1e9
    assert took(queue, now)
    wait = queue.ask(Turn(), now)
    assert wait == TICK
    assert now + wait > now


def test_threads_that_ask_at_the_same_time_get_no_permit_twice() -> None:
    queue = bucket(rate=1.0, burst=500.0)
    numbers: list[int] = []

    def grab() -> None:
        while number := took(queue, 0.0):
            numbers.append(number)

    together(*[grab] * 8)
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
    for turn in waiting:
        queue.ask(turn, 0.0)
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with Queue.lock:
            locked.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait()
    try:
        answer = in_a_child(lambda: f"{queue.waiting} waiting, wait {queue.ask(Turn(), 0.0):g}")
    finally:
        done.set()
        holder.join()
    assert answer == "0 waiting, wait 1"
    assert queue.waiting == 8


@needs_fork
def test_a_child_forked_in_the_middle_of_another_threads_step_has_an_empty_queue() -> None:
    units = Units(10.0, 10.0)
    queue, later = Queue(Rate(1.0), units), bucket()
    for each in (queue, later):
        took(each, 0.0)
    later.ask(Turn(), 0.0)
    half_way, done = threading.Event(), threading.Event()

    class Cost(dict[Source, float]):
        """The cost of a turn, which stops its thread once one source counts the turn among those that wait."""

        def get(self, _: Source, default: Any = None) -> Any:
            if units.waiting:
                half_way.set()
                done.wait()
            return default

    turn = Turn()
    turn.costs = Cost()
    thread = threading.Thread(target=queue.ask, args=(turn, 0.0))
    thread.start()
    half_way.wait()
    try:
        answer = in_a_child(
            lambda: f"{units.waiting} and {later.waiting} waiting, wait {queue.ask(Turn(), 0.0):g}"
        )
    finally:
        done.set()
        thread.join()
    assert answer == "0 and 0 waiting, wait 1"


def test_an_unused_queue_is_not_kept_for_the_next_fork() -> None:
    queue = bucket()
    reference = weakref.ref(queue)
    del queue
    gc.collect()
    assert reference() is None


@needs_fork
def test_children_draw_different_jitter() -> None:
    def draw() -> str:
        return repr([Context().random() for _ in range(3)])

    assert len({in_a_child(draw), in_a_child(draw), draw()}) == 3
