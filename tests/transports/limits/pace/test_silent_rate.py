"""Servers that refuse without saying how long to wait: what gets through, for whom, and what it costs."""

import pytest

from stkai.transports import Turn
from stkai.transports._limits.pace.quota import KnownQuota
from stkai.transports._limits.pace.silent_rate import SilentServerRate
from stkai.transports._limits.pace.start import Found
from stkai.transports._limits.pace.windowed import WindowedRate

from ....support.gateways import Down, FixedWindow, Gateway, LeakyBucket, Places, World, jain
from ....support.sender import Sender, answered, plain, sender, silent


def run(gateway: Gateway, processes: int, *numbers: float, until: float = 60.0, **options: float) -> World:
    workers = int(options.pop("workers", 4))
    world = World(gateway, **options)  # type: ignore[arg-type]
    for _ in range(processes):
        world.add(*numbers, workers=workers)
    world.run(until)
    return world


def use(world: World, start: float, rate: float) -> tuple[float, float]:
    """The share of the quota that was used from `start` on, and the refusals per success."""
    shares, refused = world.counts(start, world.now)
    return sum(shares) / (rate * (world.now - start)), refused / max(1, sum(shares))


# What gets through


@pytest.mark.no_cover
@pytest.mark.parametrize("numbers", [(), (20.0, 1.0)])
def test_alone_a_bucket_is_used_from_the_fifth_second_on(numbers: tuple[float, ...]) -> None:
    used, refused = use(run(LeakyBucket(20, 5), 1, *numbers, workers=8), 5.0, 20)
    assert used >= 0.9
    assert refused <= 0.08


@pytest.mark.no_cover
@pytest.mark.parametrize("numbers", [(), (20.0, 1.0)])
def test_alone_a_server_that_spaces_requests_out_is_used_from_the_tenth_second_on(
    numbers: tuple[float, ...],
) -> None:
    used, refused = use(run(LeakyBucket(20), 1, *numbers, workers=8), 10.0, 20)
    assert used >= 0.85
    assert refused <= 0.1


@pytest.mark.no_cover
@pytest.mark.parametrize("numbers", [(), (20.0, 1.0)])
def test_four_share_a_bucket_evenly(numbers: tuple[float, ...]) -> None:
    fairness = []
    for seed in (1, 2):
        world = run(LeakyBucket(20, 5), 4, *numbers, seed=seed)
        used, refused = use(world, 10.0, 20)
        shares, _ = world.counts(10.0, 60.0)
        assert used >= 0.9
        assert refused <= 0.1
        assert min(shares) >= 0.2 * sum(shares) / 4
        fairness.append(jain(shares))
    assert sum(fairness) / 2 >= 0.85


@pytest.mark.no_cover
def test_four_at_a_server_that_spaces_requests_out_neither_spiral_down_nor_starve() -> None:
    world = run(LeakyBucket(20), 4, until=120.0)
    early, late = world.counts(10.0, 60.0)[0], world.counts(70.0, 120.0)[0]
    assert sum(late) >= 0.45 * 20 * 50
    assert sum(late) >= 0.8 * sum(early)
    assert min(late) >= 0.4 * sum(late) / 4
    assert jain(late) >= 0.85


@pytest.mark.no_cover
def test_no_one_starves_at_a_server_that_wants_requests_ten_milliseconds_apart() -> None:
    shares = run(LeakyBucket(100), 4, seed=2, until=40.0).counts(20.0, 40.0)[0]
    assert min(shares) >= 0.4 * sum(shares) / 4


@pytest.mark.no_cover
def test_a_limit_of_requests_in_flight_is_used() -> None:
    used, refused = use(run(Places(8), 1, workers=32, service=0.2), 10.0, 40)
    assert used >= 0.75
    assert refused <= 0.15


@pytest.mark.no_cover
def test_a_quota_that_halves_and_doubles_is_followed() -> None:
    doubled = []
    for seed in (1, 2):
        bucket = LeakyBucket(20, 5)
        world = run(bucket, 4, seed=seed)
        bucket.rate = 10
        world.run(120.0)
        assert sum(world.counts(80.0, 120.0)[0]) >= 0.9 * 10 * 40
        bucket.rate = 40
        world.run(180.0)
        doubled.append(sum(world.counts(150.0, 180.0)[0]) / (40 * 30))
    assert sum(doubled) / 2 >= 0.6


@pytest.mark.no_cover
def test_one_that_joins_late_gets_its_share() -> None:
    world = run(LeakyBucket(20, 5), 3, until=30.0)
    world.add(at=30.0)
    world.run(90.0)
    shares, _ = world.counts(60.0, 90.0)
    assert min(shares) >= 0.4 * sum(shares) / 4


# A server that accepts nothing


@pytest.mark.no_cover
@pytest.mark.parametrize("numbers", [(), (20.0, 1.0)])
def test_a_server_that_refuses_everything_gets_a_probe_in_two_seconds_and_full_use_five_seconds_later(
    numbers: tuple[float, ...],
) -> None:
    world = run(Down(LeakyBucket(20, 5), 30.0, 630.0), 1, *numbers, until=700.0, workers=8)
    assert world.counts(60.0, 630.0)[1] <= 570 / 2
    assert sum(world.counts(635.0, 645.0)[0]) >= 0.8 * 20 * 10
    assert sum(world.counts(645.0, 700.0)[0]) >= 0.9 * 20 * 55
    again = next(instant for instant, _ in world.accepted if instant >= 630.0)
    assert again <= 634.2


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "gateway", [LeakyBucket(100 / 60, 10), FixedWindow(100, 60.0)], ids=["bucket", "window"]
)
def test_who_knows_the_quota_of_a_long_window_uses_it_after_an_hour_of_refusals(gateway: Gateway) -> None:
    """A rate that grew meanwhile would be refused at once, and then cut to the goodput of the outage: nothing."""
    world = run(Down(gateway, 60.0, 3660.0), 4, 100.0, 60.0, until=3785.0)
    assert world.counts(90.0, 3660.0)[1] <= 4 * 3570 / 2
    shares, refused = world.counts(3665.0, 3785.0)
    assert sum(shares) >= 0.85 * 200
    assert refused <= 0.1 * sum(shares)


@pytest.mark.no_cover
def test_a_rate_does_not_grow_while_nothing_is_answered() -> None:
    one = Sender()
    for _ in range(2):  # Two at one instant are accepted.
        one.observe(200, 0.1, 0.0, turn=one.force(0.0))
    one.refuse(0.3, sent=0.2, asked=None, turn=one.force(0.2))
    now = 0.4
    for _ in range(1000):
        one.hold_back(now)  # There is always another request.
        turn = Turn()
        while wait := one.wait(now, turn):
            now += min(wait, turn.nap)
        assert one.rate <= 10.0


@pytest.mark.no_cover
def test_a_server_that_refuses_everything_from_the_beginning_is_used_soon_after() -> None:
    world = run(Down(LeakyBucket(20, 5), 0.0, 300.0), 1, until=340.0, workers=8)
    assert world.counts(30.0, 300.0)[1] <= 270 / 2
    assert sum(world.counts(306.0, 316.0)[0]) >= 0.8 * 20 * 10
    assert sum(world.counts(316.0, 340.0)[0]) >= 0.9 * 20 * 24


@pytest.mark.parametrize(
    "one", [Sender(), Sender(20, 1.0), sender(), plain()], ids=["unknown", "short", "long", "plain"]
)
def test_no_wait_is_longer_than_a_few_seconds_without_retry_after(one: Sender) -> None:
    now = 0.0
    for _ in range(50):
        turn = Turn()
        asked = now
        while wait := one.wait(now, turn):
            now += min(wait, turn.nap)
        assert now - asked <= 10.0
        one.refuse(now + 0.1, sent=now, asked=None, turn=turn)
        now += 0.1


# Which law is in force


def test_a_refusal_without_a_word_brings_the_blind_law_and_one_with_retry_after_ends_it() -> None:
    one = Sender()
    turn = one.force(0.0)
    one.refuse(0.1, sent=0.0, asked=None, turn=turn)
    assert isinstance(one.source.mode, SilentServerRate)
    rate = one.rate
    assert str(one.source) == "found: no Retry-After"
    turn = one.force(1.0)
    one.refuse(1.1, sent=1.0, asked=5.0, turn=turn)
    assert isinstance(one.source.mode, WindowedRate)
    assert one.rate <= rate
    assert one.wait(1.1) >= 5.0


def test_successes_are_observed_until_two_requests_at_one_instant_were_accepted() -> None:
    one = Sender()
    for now in (0.0, 1.0):
        one.accept(now + 0.1, sent=now)
        assert one.source.listens(now + 0.2)
    one.accept(1.1, sent=1.0)
    one.refuse(1.3, sent=1.2, asked=None, turn=one.force(1.2))
    assert one.source.mode._test.is_bursty  # type: ignore[union-attr]


def test_a_long_window_that_was_given_and_plain_aimd_keep_their_laws() -> None:
    for one in (sender(), plain()):
        one.refuse(0.1, sent=0.0, asked=None, turn=one.force(0.0))
        assert one.source.mode is one.source._windowed


def test_the_rate_stays_between_floor_and_ceiling_whatever_is_refused() -> None:
    one = Sender(20, 1.0)
    now = 0.0
    for number in range(300):
        now += 0.5
        turn = one.force(now)
        if number % 7:
            one.refuse(now + 0.1, sent=now, asked=None, chance=0.3, turn=turn)
        else:
            one.observe(200, now + 0.1, now, turn=turn)
        assert 0.1 <= one.rate <= 20.0


def test_requests_that_are_never_answered_do_not_end_the_tests_by_pairs() -> None:
    one = Sender()
    one.refuse(0.1, sent=0.0, asked=None, turn=one.force(0.0))
    now = 1.0
    for _ in range(20):
        turn = Turn()
        while wait := one.wait(now, turn):
            now += min(wait, turn.nap)
        one.queue.leave(turn, now)
    for _ in range(6):
        turn = Turn()
        while wait := one.wait(now, turn):
            now += min(wait, turn.nap)
        one.observe(200, now + 0.001, now, turn=turn)
        now += 0.001
    assert one.rate > 2.0


# What counts for a retry


@pytest.mark.parametrize("numbers", [(), (20.0, 1.0), (100.0, 60.0)])
def test_a_refusal_is_bad_luck_for_a_minute_after_the_server_began_to_refuse(
    numbers: tuple[float, ...],
) -> None:
    one = Sender(*numbers)
    one.observe(200, 0.1, 0.0, turn=one.force(0.0))
    excused: list[bool] = []
    for second in range(1, 100):
        turn = Turn()
        one.observe(429, second + 0.1, second, turn=turn)
        excused.append(turn.excused)
    assert excused == [True] * 65 + [False] * 34


@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {}])
def test_a_server_that_has_accepted_nothing_is_given_up_by_who_knows_the_quota(
    headers: dict[str, str],
) -> None:
    one = Sender(100, 60)
    for instant in (1.0, 3.0):
        turn = Turn()
        one.observe(429, instant, instant - 0.1, headers, turn=turn)
        assert not turn.excused


def test_a_program_that_does_not_know_the_quota_waits_for_a_window_that_others_have_used_up() -> None:
    """Only its first refusal counts, although the server has accepted nothing from it."""
    one, excused = Sender(), []
    for second in range(1, 5):
        turn = Turn()
        one.observe(429, second + 0.1, second, turn=turn)
        excused.append(turn.excused)
    assert excused == [False, True, True, True]


@pytest.mark.parametrize(("asked", "is_excused"), [("0", True), ("2", True), ("3", False)])
def test_only_a_refusal_that_asks_for_at_most_two_seconds_is_bad_luck(asked: str, is_excused: bool) -> None:
    one = Sender()
    one.accept(0.1)
    turn = Turn()
    one.observe(429, 1.0, 0.9, {"Retry-After": asked}, turn=turn)
    assert turn.excused is is_excused


# Single rules, which hardly show in a model whose timers are on time


def next_permit(rate: SilentServerRate, now: float) -> float:
    """Seconds from `now` until the next permit is due."""
    rate.release(now, now, waiting=True)
    return (1.0 - rate.credit) / rate.rate


@pytest.mark.parametrize(("late", "gap"), [(0.02, 0.08), (0.05, 0.05), (0.5, 0.05)])
def test_lateness_is_made_up_for_by_half_a_gap_at_most(late: float, gap: float) -> None:
    rate, now = silent(10.0, is_bursty=True), 100.1 + late
    rate.take(Turn(), now)
    assert next_permit(rate, now) == pytest.approx(gap)


def test_lateness_is_not_made_up_for_where_requests_may_collide() -> None:
    rate = silent(10.0, is_bursty=False)
    for _ in range(2):
        rate.take(Turn(), 100.12)
    rate.ignore(Turn())
    assert next_permit(rate, 100.12) == pytest.approx(0.1)


def test_after_refusals_no_request_goes_sooner_than_at_the_rate() -> None:
    rate, now = silent(1.0, is_bursty=True), 101.0
    for _ in range(4):
        rate.refused(Turn(), answered(429, now))
        now += 10.0
    assert rate.rate < 0.3
    rate.take(Turn(), now)
    assert next_permit(rate, now) == pytest.approx(1 / rate.rate - 0.05)


@pytest.mark.parametrize(("rate", "forgets"), [(5.0, True), (0.2, False)])
def test_a_row_of_refusals_is_forgotten_only_if_it_also_takes_eight_gaps(rate: float, forgets: bool) -> None:
    silent_rate, now = silent(rate, is_bursty=True), 101.0
    silent_rate.refused(Turn(), answered(429, now))
    silent_rate.accepted(Turn(), answered(200, now + 25.0))
    assert (silent_rate.law._refused == 0.0) is forgets


# What it says


@pytest.mark.no_cover
def test_collisions_are_named_as_the_reason() -> None:
    world = run(LeakyBucket(20), 1, workers=8)
    pace = world.senders[0].source
    assert str(pace) == "found: collisions, rate kept"
    assert any("collisions, rate kept" in change.reason for change in world.changes)
    assert pace.rate > 10


@pytest.mark.no_cover
def test_a_limit_of_requests_in_flight_is_named_with_its_slots() -> None:
    world = run(Places(8), 1, workers=32, service=0.2, until=90.0)
    assert str(world.senders[0].source) == "found: in flight: 8"
    reasons = {change.reason for change in world.changes}
    assert {"no refusal since: in flight: 8", "429 Too Many Requests: in flight: 8"} & reasons


@pytest.mark.no_cover
@pytest.mark.parametrize("numbers", [(), (20.0, 1.0)])
def test_a_bucket_with_slow_answers_is_no_limit_of_requests_in_flight(numbers: tuple[float, ...]) -> None:
    world = run(LeakyBucket(20, 5), 1, *numbers, workers=32, service=0.2, until=90.0)
    assert "in flight" not in str(world.senders[0].source)


@pytest.mark.no_cover
def test_slow_answers_do_not_hide_that_a_server_spaces_requests_out() -> None:
    world = run(LeakyBucket(20), 4, workers=8, service=0.2)
    shares = world.counts(10.0, 60.0)[0]
    assert sum(shares) >= 0.45 * 20 * 50
    assert min(shares) >= 0.3 * sum(shares) / 4


@pytest.mark.no_cover
def test_alone_a_server_that_spaces_requests_out_and_takes_a_second_to_answer_is_used() -> None:
    world = run(LeakyBucket(20), 1, workers=44, service=1.0)
    assert use(world, 15.0, 20)[0] >= 0.7


@pytest.mark.no_cover
@pytest.mark.parametrize("seed", [1, 2])
def test_a_program_that_starts_a_second_later_gets_a_part_of_a_minutes_window_although_answers_take_time(
    seed: int,
) -> None:
    world = World(FixedWindow(100, 60.0), service=0.1, seed=seed)
    world.add(workers=9)
    for _ in range(3):
        world.add(workers=9, at=1.0)
    world.run(240.0)
    shares, refused = world.counts(60.0, 240.0)
    assert min(shares) >= 0.3 * sum(shares) / 4
    assert refused <= 0.3 * sum(shares)


def test_a_success_that_was_on_its_way_before_a_refusal_does_not_end_the_row() -> None:
    mode = silent(1.0, is_bursty=True)
    mode.refused(Turn(), answered(429, 102.0, sent=101.9))
    mode.accepted(Turn(), answered(200, 102.1, sent=101.8))
    mode.refused(Turn(), answered(429, 103.0, sent=102.9))
    assert mode.row == 2
    mode.accepted(Turn(), answered(200, 104.0, sent=103.5))
    assert mode.row == 0


def counted_early() -> tuple[SilentServerRate, Turn]:
    """A request that counts as accepted, since another one has been refused, and is not answered yet."""
    mode, slow, other = silent(1.0, is_bursty=True), Turn(), Turn()
    mode.take(slow, 101.0)
    mode.take(other, 102.0)
    mode.refused(other, answered(429, 102.01, sent=102.0))
    mode.release(102.02, 102.02, waiting=False)
    return mode, slow


def test_a_request_that_is_answered_after_seconds_counts_once_and_early() -> None:
    mode, slow = counted_early()
    assert mode._accepted == 1
    mode.accepted(slow, answered(200, 111.0, sent=101.0))
    assert mode._accepted == 1


def test_a_request_that_counted_as_accepted_and_is_refused_after_all_counts_as_refused() -> None:
    mode, slow = counted_early()
    assert (mode._accepted, mode.row) == (1, 1)
    mode.refused(slow, answered(429, 103.0, sent=101.0))
    assert mode.row == 2
    third = Turn()
    mode.take(third, 104.0)
    mode.refused(Turn(), answered(429, 105.0, sent=104.99))
    mode.release(113.0, 113.0, waiting=False)
    assert mode._accepted == 1, "refusals may take two seconds"
    mode.release(113.1, 113.1, waiting=False)
    assert mode._accepted == 2


@pytest.mark.no_cover
@pytest.mark.parametrize(("rate", "used"), [(5.0, 0.4), (100.0, 0.5)])
def test_servers_that_space_requests_out_are_used_at_any_rate(rate: float, used: float) -> None:
    world = run(LeakyBucket(rate), 4, seed=1)
    shares, refused = world.counts(10.0, 60.0)
    assert sum(shares) >= used * rate * 50
    assert refused <= 1.3 * sum(shares)
    assert min(shares) > 0


@pytest.mark.no_cover
@pytest.mark.parametrize("count", [25, 200])
def test_alone_a_window_of_a_second_is_used_that_the_server_never_mentions(count: int) -> None:
    used, refused = use(run(FixedWindow(count, 1.0), 1, workers=64, service=0.1, until=30.0), 10.0, count)
    assert used >= 0.8
    assert refused <= 0.05


@pytest.mark.parametrize(("rate", "cuts"), [(20.0, 1), (1.0, 3)])
def test_what_a_fast_sender_is_refused_within_a_second_is_one_event(rate: float, cuts: int) -> None:
    mode = silent(rate, is_bursty=True)
    for now in (102.0, 102.3, 102.6):
        mode.refused(Turn(), answered(429, now))
        mode.accepted(Turn(), answered(200, now + 0.1))
    assert mode.law._cuts == cuts


def test_a_short_wait_that_the_server_asks_for_covers_the_refusals_in_it() -> None:
    mode = silent(1.0, is_bursty=True)
    for now in (102.0, 103.9, 104.1):
        mode.refused(Turn(), answered(429, now), 2.0)
        mode.accepted(Turn(), answered(200, now + 0.1))
    assert mode.law._cuts == 2


@pytest.mark.parametrize(("accepted", "rate"), [(19.0, 2.0), (20.0, 15.0)])
def test_a_start_goes_on_from_what_was_accepted_if_that_was_more_than_a_small_burst(
    accepted: float, rate: float
) -> None:
    found = Found(15.0, True, accepted, 100.0, True)
    assert SilentServerRate(KnownQuota(None, None, 0.0), found, 101.0).rate == rate


@pytest.mark.parametrize(("accepted", "returns"), [(6.0, False), (7.0, True)])
def test_after_an_outage_of_a_start_fewer_than_eight_successes_do_not_say_how_fast_a_server_is(
    accepted: float, returns: bool
) -> None:
    mode = SilentServerRate(KnownQuota(None, None, 0.0), Found(2.0, True, accepted, 100.0, True), 101.0)
    for now in (102.1, 102.2, 103.0):
        mode.refused(Turn(), answered(429, now))
    before = mode.rate
    mode.accepted(Turn(), answered(200, 106.0))
    mode.accepted(Turn(), answered(200, 106.5))
    mode.release(106.5, 107.5, waiting=True)
    assert (mode.rate > 1.3 * before) == returns


def test_a_call_that_is_refused_alone_again_and_again_is_not_excused_for_ever() -> None:
    one = Sender()
    one.refuse(0.1, sent=0.0, asked=None, turn=one.force(0.0))
    now, turn, excused = 1.0, Turn(), 0
    for _ in range(50):
        now += 1.0
        one.observe(200, now + 0.1, now, turn=one.force(now))
        again = Turn()
        again.resume(turn)
        turn = again
        one.refuse(now + 0.2, sent=now + 0.1, asked=None, turn=turn)
        excused += turn.excused
    assert 1 <= excused <= 20


def test_a_verdict_of_collisions_is_taken_back_where_an_outage_shows_that_most_is_refused() -> None:
    rate, now = silent(1.0, is_bursty=False), 101.0
    rate._test._failed, rate._test._gap = 3, 1.0
    assert rate._test.is_strict
    for _ in range(12):
        now += 0.1
        rate.refused(Turn(), answered(429, now))
    rate.accepted(Turn(), answered(200, now + 1))
    assert not rate._test.is_strict
    rate._test._failed = 6
    assert rate._test.is_strict


def test_until_the_next_success_a_strict_server_gets_at_most_half_as_much_again() -> None:
    rate, now = silent(2.0, is_bursty=False), 101.0
    rate._test._failed, rate._test._gap = 3, 0.5
    rate.accepted(Turn(), answered(200, now))
    for _ in range(10):
        rate.release(now, now + 1.0, waiting=True)
        now += 1.0
    assert rate.rate == pytest.approx(3.0)
    rate.accepted(Turn(), answered(200, now))
    rate.release(now, now + 1.0, waiting=True)
    assert 3.0 < rate.rate <= 4.5
    rate.accepted(Turn(), answered(200, now))
    rate.update(0.1)
    slowest = rate.rate
    for _ in range(10):
        rate.release(now, now + 1.0, waiting=True)
        now += 1.0
    assert slowest < rate.rate <= 1.5 * slowest


def test_the_bound_of_that_growth_holds_from_the_verdict_on() -> None:
    rate, now = silent(2.0, is_bursty=False), 101.0
    rate.accepted(Turn(), answered(200, now))
    rate._test._failed, rate._test._gap = 3, 0.5
    for _ in range(10):
        rate.release(now, now + 1.0, waiting=True)
        now += 1.0
    assert rate.rate == pytest.approx(3.0)


def test_the_start_grows_only_while_requests_wait() -> None:
    rates = []
    for waiting in (True, False):
        rate = silent(1.0, is_bursty=True)
        rate._starting = True
        rate.accepted(Turn(), answered(200, 101.0))
        for second in range(102, 112):
            rate.release(second - 1.0, float(second), waiting=waiting)
            rate.accepted(Turn(), answered(200, float(second)))
        rates.append(rate.rate)
    assert rates[0] > 50
    assert rates[1] < 10


@pytest.mark.parametrize(
    ("numbers", "is_bursty", "refusals"),
    [((20.0, 1.0), False, 6), ((20.0, 1.0), True, 2), ((None, None), False, 2)],
)
def test_with_a_given_quota_five_refusals_may_be_collisions_until_a_burst_is_known(
    numbers: tuple[float | None, float | None], is_bursty: bool, refusals: int
) -> None:
    found = Found(2.0, False, 50.0, 0.0, is_bursty)
    rate, now, count = SilentServerRate(KnownQuota(*numbers), found, 100.0), 101.0, 0
    while rate._hold < now:
        now, count = now + 1.0, count + 1
        rate.refused(Turn(), answered(429, now))
    assert count == refusals
