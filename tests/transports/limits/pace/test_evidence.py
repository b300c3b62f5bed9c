"""What the answers of a silent server show about its rate, and about requests that it has not answered yet."""

import math
import random
import statistics

import pytest

from stkai.transports import Turn
from stkai.transports._limits.pace.evidence import Refill, Unanswered, WindowTest
from stkai.transports._limits.pace.pairs import PairTest
from stkai.transports._limits.pace.quota import KnownQuota
from stkai.transports._limits.pace.silent_servers import EqualRefusals, SilentWindow

from ....support.gateways import LeakyBucket, World
from ....support.sender import answered, silent


def retry(refill: Refill, seconds: float, *, accepted: bool, now: float = 0.0, in_row: bool = False) -> None:
    """A refusal, and a request that is sent so many seconds later."""
    refill.sent(now)
    refill.answered(now, accepted=False, in_row=in_row)
    refill.sent(now + seconds)
    refill.answered(now + seconds, accepted=accepted, in_row=True)


def learned(*retries: tuple[float, bool]) -> Refill:
    refill = Refill()
    for number, (seconds, accepted) in enumerate(retries):
        retry(refill, seconds, accepted=accepted, now=100.0 * number)
    return refill


@pytest.mark.parametrize("rate", [1.0, 1.67, 5.0, 12.0])
def test_retries_at_a_bucket_show_its_rate_to_within_a_factor_of_two_or_so(rate: float) -> None:
    chance, refill, found = random.Random(1), Refill(), []  # noqa: S311 - not for secrets
    for number in range(500):
        seconds = refill.retry_after(chance.random())
        accepted = chance.random() < 0.03 + 0.84 * (1 - math.exp(-5 * rate * seconds))
        retry(refill, seconds, accepted=accepted, now=100.0 * number)
        found.append(math.log(refill.rate / rate))
    assert abs(statistics.fmean(found[20:])) < math.log(1.5)
    assert statistics.stdev(found[20:]) < math.log(2)


def test_three_retries_show_nothing_yet() -> None:
    assert learned(*[(0.5, False)] * 3).rate == math.inf
    assert learned(*[(0.5, False)] * 4).rate < 1


def test_a_retry_that_follows_further_refusals_says_nothing() -> None:
    refill = learned(*[(0.05, True)] * 4)
    rate = refill.rate
    retry(refill, 5.0, accepted=False, now=1000.0, in_row=True)
    assert refill.rate == rate


def test_only_the_next_request_after_a_refusal_is_a_retry() -> None:
    refill = learned(*[(0.05, True)] * 4)
    rate = refill.rate
    refill.sent(1000.0)
    refill.sent(1001.0)  # It was on its way before the refusal arrived.
    refill.answered(1000.0, accepted=False)
    refill.sent(1002.0)
    for sent in (1001.0, 1002.0):
        refill.answered(sent, accepted=False, in_row=True)
    assert refill.rate == rate


def test_a_clock_that_goes_back_does_no_harm() -> None:
    refill = learned(*[(-5.0, False)] * 4, *[(-5.0, True)] * 4)
    assert math.isfinite(refill.rate)


def test_the_slower_the_server_the_later_the_retry() -> None:
    slow, fast = learned(*[(0.5, False)] * 4), learned(*[(0.02, True)] * 4)
    assert fast.retry_after(0.5) < 0.1 < slow.retry_after(0.5)
    assert slow.retry_after(0.0) == pytest.approx(slow.retry_after(1.0) / 3)


def law(*retries: tuple[float, bool]) -> EqualRefusals:
    law = EqualRefusals(
        KnownQuota(None, None), PairTest(KnownQuota(None, None), is_bursty=True), SilentWindow(0.0, 0.0)
    )
    law.refill = learned(*retries)
    return law


def test_patience_grows_with_the_square_of_the_servers_slowness() -> None:
    slow, fast = law(*[(0.5, False), (0.3, True)] * 5), law(*[(0.01, True)] * 10)
    assert 1 < slow.refill.rate < 4
    ratio = slow.patience(4.0) / fast.patience(4.0)
    assert ratio == pytest.approx((16 / slow.refill.rate) ** 2)


def test_patience_is_proportional_to_the_rate_down_to_an_eighth_of_the_servers() -> None:
    known = law(*[(0.01, True)] * 10)
    assert [known.patience(rate) / known.patience(2.0) for rate in (1.0, 2.0, 4.0, 20.0)] == [1, 1, 2, 5]


def test_a_server_is_at_least_twice_as_fast_as_the_sender_itself_was() -> None:
    known = law(*[(1.0, False)] * 10)
    patience = known.patience(4.0)
    for _ in range(100):
        known.note(4.0, refused=False)
    assert known.patience(4.0) < patience / 10


@pytest.mark.parametrize("others", [0, 10])
def test_the_first_retry_after_a_refusal_is_early_however_many_requests_are_in_flight(others: int) -> None:
    rate = silent(0.5, is_bursty=True)
    now = 100.0
    for _ in range(others + 1):
        rate.take(Turn(), now)
    rate.refused(Turn(), answered(429, now + 0.01, sent=now))
    missing = 1.0 - rate.release(now + 0.01, now + 0.01, waiting=True)
    assert rate.time_for(missing, now + 0.01) < 0.1


def end_row(test: WindowTest, now: float, *outcomes: bool, allowed: float = 1.0) -> int:
    """A row of refusals that ends half a second after the last of them. Returns how many of the tests are sent."""
    test.refused(Turn(), now - 0.5)
    sends, number = test.row_ended(now, allowed), 0
    while sends:
        turn = Turn()
        test.sent(turn, now)
        if outcomes[number]:
            sends = test.accepted(turn)
        else:
            sends = False
            assert test.refused(turn, now)
        number += 1
    return number


ACCEPTED = (True,) * 10


def test_three_rows_that_end_in_room_for_several_requests_show_a_window() -> None:
    test, rows = WindowTest(0.0), 0
    while not test.is_window:
        assert end_row(test, 30.0 + 10 * rows, *ACCEPTED) == 2
        rows += 1
    assert rows == 3
    assert end_row(test, 100.0, *ACCEPTED) == 1


def test_after_a_long_silence_more_tests_are_needed_since_a_bucket_has_filled_up() -> None:
    long, short = WindowTest(0.0), WindowTest(0.0)
    long.refused(Turn(), 40.0)
    assert long.row_ended(45.0, 1.0)
    sent = 0
    while long._is_next:
        turn = Turn()
        long.sent(turn, 45.0)
        long.accepted(turn)
        sent += 1
    assert sent > end_row(short, 45.0, *ACCEPTED)


def test_one_refused_test_shows_that_there_is_no_window() -> None:
    test = WindowTest(0.0)
    for row in range(3):
        end_row(test, 30.0 + 10 * row, *ACCEPTED)
    assert test.is_window
    end_row(test, 60.0, False)
    assert not test.is_window


def test_the_request_after_a_refusal_is_a_retry_and_no_test() -> None:
    test, retry = WindowTest(0.0), Turn()
    assert test.row_ended(30.0, 1.0)
    test.refused(Turn(), 29.9)
    test.sent(retry, 31.0)
    assert not test.refused(retry, 31.0)


def test_each_refused_test_makes_tests_rarer() -> None:
    test = WindowTest(0.0)
    assert [row for row in range(100) if end_row(test, 30.0 + row, False)] == [0, 4, 20, 84]


def test_nothing_is_tested_in_the_first_twenty_seconds_or_at_a_fast_server() -> None:
    assert end_row(WindowTest(0.0), 20.0) == 0
    assert end_row(WindowTest(0.0), 30.0, allowed=4.1) == 0
    assert end_row(WindowTest(0.0), 30.0, False, allowed=3.9) == 1


def test_a_test_goes_at_once_and_its_refusal_costs_no_rate() -> None:
    rate = silent(0.5, is_bursty=True)
    for _ in range(5):
        rate.law.refill._observe(0.3, accepted=False)
    rate.take(turn := Turn(), 130.0)
    rate.refused(turn, answered(429, 130.01, sent=130.0))
    rate.take(turn := Turn(), 131.0)
    rate.accepted(turn, answered(200, 131.01, sent=131.0))
    assert rate.release(131.01, 131.01, waiting=True) == 1.0
    rate.take(turn := Turn(), 131.01)
    before = rate.rate
    rate.refused(turn, answered(429, 131.02, sent=131.01))
    assert rate.rate == before
    assert rate.row == 0
    assert rate.release(131.02, 131.02, waiting=True) < 1.0


def refused(unanswered: Unanswered, *, after: float, now: float) -> None:
    """A refusal that arrives now, `after` seconds after its request was sent."""
    turn = Turn()
    unanswered.sent(turn, now - after)
    unanswered.refused(turn, now, now - after)


def test_a_request_in_flight_for_much_longer_than_refusals_take_has_been_accepted() -> None:
    unanswered, turn = Unanswered(), Turn()
    unanswered.sent(turn, 10.0)
    refused(unanswered, after=0.02, now=10.1)
    assert list(unanswered.accepted(10.14)) == []
    assert list(unanswered.accepted(10.16)) == [(turn, 10.0)]
    assert list(unanswered.accepted(11.0)) == []
    assert not unanswered.answered(turn, 12.0)


def test_the_longer_refusals_take_the_longer_a_request_may_still_be_refused() -> None:
    unanswered, turn = Unanswered(), Turn()
    refused(unanswered, after=1.0, now=9.0)
    for now in (9.5, 9.6, 9.7):
        refused(unanswered, after=0.01, now=now)
    unanswered.sent(turn, 10.0)
    refused(unanswered, after=0.01, now=10.1)
    assert list(unanswered.accepted(13.2)) == []
    assert list(unanswered.accepted(13.5)) == [(turn, 10.0)]


def test_while_nothing_is_answered_nothing_counts_as_accepted() -> None:
    unanswered, turn = Unanswered(), Turn()
    refused(unanswered, after=0.01, now=9.9)
    unanswered.sent(turn, 10.0)
    assert list(unanswered.accepted(60.0)) == []
    assert unanswered.answered(turn, 61.0)


def test_a_request_that_was_given_up_does_not_count_as_accepted() -> None:
    unanswered, turn = Unanswered(), Turn()
    unanswered.sent(turn, 10.0)
    unanswered.ended(turn)
    refused(unanswered, after=0.01, now=10.5)
    assert list(unanswered.accepted(11.0)) == []


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("rate", "burst", "service", "seeds"),
    [(20.0, 5, 0.001, [1]), (10.0, 3, 0.001, [1, 2]), (100 / 60, 10, 0.001, [1, 2]), (10.0, 3, 2.0, [1, 2])],
)
def test_a_sender_with_a_tenth_of_its_share_is_soon_back(
    rate: float, burst: int, service: float, seeds: list[int]
) -> None:
    least = []
    for seed in seeds:
        world = World(LeakyBucket(rate, burst), service=service, seed=seed)
        for _ in range(4):
            world.add(workers=4 + round(rate * service / 2))
        world.run(90.0)
        for number, sender in enumerate(world.senders):
            sender.source.mode.rate = (0.33 if number else 0.025) * rate
        world.run(210.0)
        counts, _ = world.counts(150.0, 210.0)
        least.append(4 * min(counts) / sum(counts))
    assert statistics.fmean(least) >= 0.4
