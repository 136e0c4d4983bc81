"""Laws of starting a role again."""

from hypothesis import given
from hypothesis import strategies as st

from streams.restarts import PAUSE_MAX_S, RESTARTS_MAX, WINDOW_S, Restarts


def test_the_pause_doubles_to_its_most_and_then_it_is_given_up():
    """Ten restarts within five minutes, and no eleventh; 0.5 s doubles to 15 s."""
    restarts = Restarts()
    pauses = [restarts.pause_s(float(now_s)) for now_s in range(11)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0, 15.0, None]
    assert restarts.count == 10


def test_five_calm_minutes_are_a_new_beginning():
    """Then the pause is the first one again; the count of restarts goes on."""
    restarts = Restarts()
    for now_s in range(RESTARTS_MAX):
        restarts.pause_s(float(now_s))
    assert restarts.pause_s(RESTARTS_MAX + WINDOW_S) == 0.5
    assert restarts.count == RESTARTS_MAX + 1


@given(st.lists(st.floats(0, 200), max_size=60))
def test_a_role_is_given_up_only_for_many_deaths_within_the_window(gaps_s: list[float]):
    """At every death: given up exactly if ten restarts came within the window before it; else the pause is bounded."""
    restarts, now_s, started = Restarts(), 0.0, []
    for gap_s in gaps_s:
        now_s += gap_s
        recent = sum(now_s - one < WINDOW_S for one in started)
        pause_s = restarts.pause_s(now_s)
        assert (pause_s is None) == (recent >= RESTARTS_MAX)
        if pause_s is not None:
            assert 0.5 <= pause_s <= PAUSE_MAX_S
            started.append(now_s)
