"""Laws of how fast a replay goes."""

import pytest

from streams.pace import (
    BURST_S,
    LIVE_EXTRA_S,
    POSTS_MAX,
    POSTS_MIN,
    ROUND_TRIP_S,
    WAITING_MIN,
    WAITING_S,
    Cushion,
    Pace,
)


def test_transactions_grow_while_the_stages_are_quick():
    """Up to a bound; and only where as much was in flight: little that is quick tells nothing of more."""
    pace = Pace()
    for _ in range(100):
        pace.came_back(pace.posts, ROUND_TRIP_S / 2)
    assert pace.next(0.0) == (POSTS_MAX, 0.0)
    pace = Pace()
    pace.came_back(1, ROUND_TRIP_S / 2)
    assert pace.posts == POSTS_MIN


def test_beside_live_posts_little_more_may_be_in_flight_than_takes_no_time():
    """They wait behind it. What is quick with few posts says what is no queue."""
    pace = Pace(posts=20_000, is_beside_live=True)
    pace.held_up()
    pace.came_back(POSTS_MIN, 0.1)
    assert pace.posts == 10_000
    pace.came_back(10_000, 2 * (0.1 + LIVE_EXTRA_S))
    assert pace.posts == 5_000
    pace.came_back(5_000, 0.1 + LIVE_EXTRA_S / 2)
    assert pace.posts == 6_250
    pace.live_posts_max = 2_000
    assert (pace.next(0.0), pace.in_flight_max) == ((2_000, 0.0), 1)
    pace.is_beside_live = False
    assert pace.next(0.0) == (6_250, 0.0)
    assert pace.in_flight_max > 1
    pace.came_back(6_250, 2 * (0.1 + LIVE_EXTRA_S))
    assert pace.posts == 7_812


@pytest.mark.parametrize("factor", [1.25, 2.0, 100.0])
def test_transactions_shrink_by_as_much_as_they_are_late(factor: float):
    """At most by half, and to a bound."""
    pace = Pace(posts=10_000)
    pace.came_back(10_000, ROUND_TRIP_S * factor)
    assert pace.posts == max(5_000, int(10_000 / factor))
    for _ in range(100):
        pace.came_back(pace.posts, ROUND_TRIP_S * factor)
    assert pace.posts == POSTS_MIN


@pytest.mark.parametrize("rate", [0.5, 7.0, 1_000.0, 90_000.0])
def test_no_more_is_sent_than_the_rate_allows(rate: float):
    """In any span of time so many posts as it has, and those of one burst."""
    pace, now_s, sent = Pace(rate, posts=POSTS_MAX), 100.0, 0
    while now_s < 130.0:
        posts, wait_s = pace.next(now_s)
        assert posts or wait_s > 0
        sent += posts
        pace.sent(posts, now_s)
        now_s += max(wait_s, 0.001)
    assert sent <= rate * (30.0 + 2 * BURST_S) + 1
    assert sent >= min(rate, POSTS_MAX / BURST_S) * 30.0 * 0.9 - 1


def test_what_was_not_sent_in_time_is_not_made_good():
    """After a pause of an hour it goes on at its rate."""
    pace = Pace(100.0, posts=POSTS_MAX)
    pace.sent(20, 0.0)
    pace.sent(20, 3_600.0)
    posts, wait_s = pace.next(3_600.0)
    assert (posts, wait_s) == (20, 0.0)
    pace.sent(20, 3_600.0)
    assert pace.next(3_600.0)[0] == 0


def test_what_waits_for_the_encoder_is_some_seconds_of_its_work():
    """Whatever its speed, that of lately counts; and it never has less than it needs to show how fast it is."""
    cushion, now_s, encoded = Cushion(), 100.0, 1_000_000
    assert cushion.most(encoded, now_s) == WAITING_MIN
    for per_s in (1_000, 50):
        for _ in range(100):
            now_s, encoded = now_s + 0.2, encoded + per_s // 5
            most = cushion.most(encoded, now_s)
        assert per_s * WAITING_S * 0.9 <= most <= per_s * WAITING_S * 1.1
    for _ in range(100):
        now_s += 0.2
        most = cushion.most(encoded, now_s)
    assert most == WAITING_MIN
    assert len(cushion._seen) < 50


def test_an_encoder_that_has_enough_halves_what_is_sent_at_once():
    """To a bound."""
    pace = Pace(posts=10_000)
    pace.held_up()
    assert pace.posts == 5_000
    for _ in range(100):
        pace.held_up()
    assert pace.posts == POSTS_MIN
