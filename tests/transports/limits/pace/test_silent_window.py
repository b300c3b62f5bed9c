"""Windows that a server never mentions: how they are found, kept, and given up."""

import pytest

from stkai.transports import Turn
from stkai.transports._limits.pace.silent_servers import SilentWindow

from ....support.gateways import FixedWindow, World, jain
from ....support.sender import Sender


def outage(window: SilentWindow, began: float, ended: float) -> float:
    """The server refuses everything for a while, and accepts again."""
    window.refused(began)
    return window.accepts_again(ended, began)


def found(accepted: int = 25) -> SilentWindow:
    """A window of a minute that has just begun again."""
    window = SilentWindow(0.0, accepted)
    assert outage(window, 20.0, 60.0) == accepted / 60
    assert window.seconds == 60.0
    return window


def test_what_was_accepted_between_two_outages_is_the_share_of_a_window() -> None:
    found()


@pytest.mark.parametrize(
    ("accepted", "began", "ended", "why"),
    [
        (4, 20.0, 60.0, "too few were accepted to say how many"),
        (25, 55.0, 60.0, "the outage was short, as at a bucket that others have emptied"),
        (25, 20.0, 90.0, "it took longer than a minute and a quarter"),
    ],
)
def test_not_every_outage_is_the_rest_of_a_window(
    accepted: int, began: float, ended: float, why: str
) -> None:
    window = SilentWindow(0.0, accepted)
    assert outage(window, began, ended) == 0.0, why
    assert window.seconds == 0.0


def test_a_server_that_refused_now_and_then_before_the_outage_has_no_window() -> None:
    window = SilentWindow(0.0, 25)
    window.refused(5.0)
    assert outage(window, 20.0, 60.0) == 0.0


def test_the_next_outage_may_be_as_short_as_it_likes() -> None:
    window = found()
    for _ in range(30):
        window.accepted()
    assert outage(window, 119.5, 120.0) == 0.5


def test_two_refusals_too_soon_show_that_there_is_no_window() -> None:
    window = found()
    for began in (70.0, 80.0):
        assert window.seconds == 60.0
        outage(window, began, began + 1)
    assert window.seconds == 0.0


def test_a_window_that_refuses_nothing_is_forgotten() -> None:
    window = found()
    window.forget_if_old(60.0 + 2.5 * 60.0)
    assert window.seconds == 60.0
    window.forget_if_old(60.0 + 2.5 * 60.0 + 1)
    assert window.seconds == 0.0


@pytest.mark.no_cover
@pytest.mark.parametrize("numbers", [(), (100.0, 60.0)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_window_of_a_minute_is_divided_without_a_word_of_it(numbers: tuple[float, ...], seed: int) -> None:
    world = World(FixedWindow(100, 60.0), seed=seed)
    for _ in range(4):
        world.add(*numbers)
    world.run(300.0)
    shares, refused = world.counts(60.0, 300.0)
    assert sum(shares) >= 0.8 * 400
    assert refused <= 0.2 * sum(shares)
    assert jain(shares) >= 0.85
    assert world.most_attempts <= 4


@pytest.mark.no_cover
def test_a_window_that_the_server_never_mentions_is_named() -> None:
    world = World(FixedWindow(100, 60.0))
    world.add(workers=8)
    world.run(600.0)
    assert str(world.senders[0].source) == "found: window of about 60 s"
    assert any("window of about 60 s" in change.reason for change in world.changes)


@pytest.mark.no_cover
def test_those_who_join_late_get_their_share_of_a_window_that_the_server_never_mentions() -> None:
    world = World(FixedWindow(300, 30.0))
    for at in (0.0, 0.0, 120.0, 120.0):
        world.add(at=at)
    world.run(420.0)
    shares, _ = world.counts(240.0, 420.0)
    assert min(shares) >= 0.6 * sum(shares) / 4


@pytest.mark.no_cover
def test_what_is_refused_while_the_server_accepts_nothing_makes_no_window() -> None:
    one = Sender()
    for _ in range(20):
        one.accept(0.1)
    for second in range(1, 3600):
        one.observe(429, second + 0.1, second, turn=Turn())
    one.observe(200, 3600.1, 3600.0, turn=one.force(3600.0))
    assert one.look(3605.0) >= 2.0
