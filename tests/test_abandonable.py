"""Work in another thread, and those who wait for it."""

import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from stkai import _abandonable
from stkai._abandonable import AbandonableWork, GivenUpError, Latch, do_within, idle_workers
from stkai.transports._limits.limiter import Turn

from .support.interrupts import Interrupt, needs_opcodes
from .support.threads import wait_until


@pytest.mark.real_time
def test_work_ends_although_its_waiters_leave_at_that_moment() -> None:
    """In a free-threaded Python, they leave between any two steps of its end."""
    for _ in range(30):
        latches = [Latch() for _ in range(100)]
        begin = threading.Barrier(9)

        def leave(latches: list[Latch] = latches, begin: threading.Barrier = begin) -> None:
            begin.wait()
            for latch in latches:
                while not latch.wait(0.0):
                    pass

        waiters = [threading.Thread(target=leave, daemon=True) for _ in range(8)]
        for waiter in waiters:
            waiter.start()
        begin.wait()
        for latch in latches:
            latch.run()
        for waiter in waiters:
            waiter.join(10.0)
        assert all(latch.is_done for latch in latches)
        assert not any(waiter.is_alive() for waiter in waiters)


def test_work_that_two_threads_begin_at_the_same_moment_is_done_once() -> None:
    done = list[int]()

    class Met(AbandonableWork):
        """Another thread runs it between the first thread's look at the work and its next step."""

        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name == "_work" and not done and threading.current_thread() is threading.main_thread():
                other = threading.Thread(target=self.run)
                other.start()
                other.join()
            return value

    Met(lambda: done.append(1)).run()
    assert done == [1]


@pytest.mark.real_time
def test_a_sleeper_may_be_woken_more_than_once() -> None:
    latch, turn = Latch(), Turn()
    waiter = threading.Thread(target=latch.wait, args=(30.0, turn), daemon=True)
    waiter.start()
    wait_until(lambda: turn.wake is not None)
    assert turn.wake is not None
    for _ in range(3):
        turn.wake()
    waiter.join(10.0)
    assert not waiter.is_alive()


@pytest.mark.no_cover
@needs_opcodes
def test_no_thread_is_left_after_an_interrupt_at_any_point() -> None:
    before = set(threading.enumerate())
    for number in count(1):
        interrupt = Interrupt(number, "_abandonable.py")
        with interrupt.during():
            do_within(10.0, lambda: None)
        if interrupt.left > 0:
            break
    assert number > 10, "there were interrupts"
    for thread in filter(threading.Thread.is_alive, set(threading.enumerate()) - before):
        thread.join(10)
        assert not thread.is_alive()


def threads_of(calls: int) -> list[threading.Thread]:
    """The threads in which these calls did their work, one after another; the last one is idle afterwards."""
    used = list[threading.Thread]()
    for _ in range(calls):
        do_within(10.0, lambda: used.append(threading.current_thread()))
        wait_until(lambda: bool(idle_workers.workers))
    return used


@pytest.mark.real_time
def test_calls_in_quick_succession_use_one_thread_which_ends_when_there_are_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_abandonable, "IDLE_TIMEOUT", 30.0)
    first, *others = threads_of(5)
    assert set(others) == {first}
    monkeypatch.setattr(_abandonable, "IDLE_TIMEOUT", 0.01)
    do_within(10.0, lambda: None)
    first.join(10)
    assert not first.is_alive()
    assert idle_workers.workers == []


@pytest.mark.real_time
def test_a_thread_that_hangs_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_abandonable, "IDLE_TIMEOUT", 30.0)
    go, hanging = threading.Event(), list[threading.Thread]()

    def hang() -> None:
        hanging.append(threading.current_thread())
        go.wait(30)

    with pytest.raises(GivenUpError):
        do_within(0.05, hang)
    wait_until(lambda: bool(hanging))
    assert threads_of(1) != hanging
    go.set()
    idle_workers.workers.clear()


@pytest.mark.parametrize(
    "clean_up", [lambda _: threading.Lock().release(), {}.pop], ids=["a lock", "a table"]
)
def test_an_interrupt_that_breaks_the_start_of_a_thread_is_raised(
    clean_up: Callable[[threading.Thread], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        """Fail as CPython does if its lock is not taken any more, or if the thread has already begun."""
        try:
            raise KeyboardInterrupt
        finally:
            clean_up(thread)

    monkeypatch.setattr(idle_workers, "workers", [])
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(KeyboardInterrupt):
        do_within(1.0, lambda: None)
