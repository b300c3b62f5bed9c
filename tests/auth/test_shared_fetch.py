"""One fetch for all callers: threads that start together, those that wait, interrupts and forks."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from stkai.testing import FakeClock

from ..support.interrupts import ctrl_c
from ..support.tokens import Issuer, in_threads, provider_over, wait_for_callers
from ..support.wire import Wire


def test_a_caller_that_arrives_just_after_a_renewal_does_not_renew_again() -> None:
    class Interleaved(FakeClock):
        """On its first reading, another caller fetches a token between the cache check and the fetch."""

        armed = True

        def monotonic(self) -> float:
            now = super().monotonic()
            if self.armed:
                self.armed = False
                provider.get_access_token()
            return now

    issuer = Issuer()
    provider = provider_over(issuer, Interleaved())
    assert provider.get_access_token() == "token-1"
    assert issuer.fetches == 1


def test_the_error_of_a_waiter_keeps_its_cause() -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        wait_for_callers(provider, 4)
        raise httpx.ConnectError("refused")

    provider = provider_over(Wire(fail))
    errors = in_threads(4, provider.get_access_token)
    assert {type(error.cause) for error in errors} == {httpx.ConnectError}
    assert {error.__cause__ is error.cause for error in errors} == {True}


def test_ctrl_c_ends_the_wait_of_the_main_thread_and_leaves_the_fetch_to_the_others() -> None:
    def hang(_: int) -> None:
        wait_for_callers(provider, 2)
        both_wait.set()
        assert interrupted.wait(60)

    both_wait, interrupted = threading.Event(), threading.Event()
    issuer = Issuer(hang)
    provider = provider_over(issuer)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(provider.get_access_token)
        with ctrl_c(both_wait.is_set):
            provider.get_access_token()
        interrupted.set()
        assert other.result(timeout=60) == "token-1"
    assert issuer.fetches == 1


def test_an_interrupt_that_a_provider_raises_reaches_all_waiters() -> None:
    def stop(_: int) -> None:
        wait_for_callers(provider, 4)
        raise SystemExit(3)

    def get() -> object:
        try:
            return provider.get_access_token()
        except SystemExit as error:
            return error.code

    provider = provider_over(Issuer(stop))
    assert in_threads(4, get) == [3] * 4


def test_a_forked_child_does_not_wait_for_its_parents_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork(number: int) -> None:
        if number == 1:
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: -1)
                in_child.append(provider.get_access_token())

    in_child: list[str] = []
    provider = provider_over(Issuer(fork))
    assert provider.get_access_token() == "token-1"
    assert in_child == ["token-2"]
