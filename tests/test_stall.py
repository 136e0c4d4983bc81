"""Laws of what counts as a stall."""

from hypothesis import given
from hypothesis import strategies as st

from streams.stall import Stalled, Stalls

TIMEOUT_S = 60.0


def play(*looks: tuple[float, dict[str, tuple[int, int]]], beats: dict[float, int] | None = None) -> Stalled | None:
    """The verdict of the last of some looks, each a time and what is seen."""
    stalls = Stalls(TIMEOUT_S)
    verdict = None
    for now_s, seen in looks:
        verdict = stalls.judge(now_s, seen, (beats or {}).get(now_s, 0))
    return verdict


def test_waiting_without_progress_is_a_stall():
    """From the time-out on, and not before; the line names place, time and how much waits."""
    looks = [(now_s, {"misses/3": (7, 12)}) for now_s in (0.0, 15.0, 30.0, 45.0, 59.0, 60.0)]
    assert play(*looks[:-1]) is None
    assert str(play(*looks)) == "no progress in misses/3 for 60 s with 12 records waiting"


def test_progress_ends_it():
    """The clock starts again at each record that is taken, however many wait."""
    assert play(*((15.0 * look, {"misses/3": (look // 3, 1_000)}) for look in range(50))) is None


def test_where_nothing_waits_there_is_no_stall():
    """An idle place never stalls, and the time in which nothing waited does not count."""
    idle = [(15.0 * look, {"misses/3": (7, 0)}) for look in range(10)]
    busy = [(150.0 + 15.0 * look, {"misses/3": (7, 1)}) for look in range(4)]
    assert play(*idle, *busy) is None
    assert play(*idle, *busy, (210.0, {"misses/3": (7, 1)})) == Stalled("misses/3", 60.0, 1)


def test_what_is_not_known_does_not_count():
    """Without an answer of the brokers a place starts over: a role that waits for them does not stall."""
    looks = [(15.0 * look, {"misses/3": (7, 1)} if look % 4 else {}) for look in range(40)]
    assert play(*looks) is None


def test_a_beat_is_progress_everywhere():
    """A long window that is computed batch by batch holds nobody's records back."""
    looks = [(15.0 * look, {"misses/3": (7, 1)}) for look in range(40)]
    assert play(*looks, beats={now_s: int(now_s) // 45 for now_s, _ in looks}) is None
    assert play(*looks, beats=dict.fromkeys((now_s for now_s, _ in looks), 5)) is not None


def test_time_that_nobody_watched_does_not_count():
    """After SIGSTOP, or a laptop's sleep, it starts over."""
    stopped = [(0.0, {"misses/3": (7, 1)}), (15.0, {"misses/3": (7, 1)}), (3_600.0, {"misses/3": (7, 1)})]
    assert play(*stopped) is None
    assert play(*stopped, *((3_600.0 + 15 * look, {"misses/3": (7, 1)}) for look in range(1, 5))) is not None


def test_the_longest_one_is_named():
    """Of several, that which has stood still longest."""
    looks = [(15.0 * look, {"a/0": (max(0, 3 - look), 5), "b/0": (1, 5)}) for look in range(8)]
    verdict = play(*looks)
    assert verdict is not None
    assert (verdict.place, verdict.for_s) == ("b/0", 105.0)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 2), st.integers(0, 1)), max_size=60))
def test_no_stall_is_shorter_than_the_time_out(looks: list[tuple[float, int, int]]):
    """Whatever is seen and when: a stall means that the last look with other progress, or none waiting, is that old."""
    stalls, now_s, moved_s = Stalls(TIMEOUT_S), 0.0, 0.0
    before: tuple[int, int] | None = None
    for pause_s, progress, waiting in looks:
        now_s += pause_s
        if before is None or before[0] != progress or not before[1]:
            moved_s = now_s
        before = (progress, waiting)
        if stalled := stalls.judge(now_s, {"misses/3": (progress, waiting)}):
            assert waiting
            assert TIMEOUT_S <= stalled.for_s <= now_s - moved_s + 1e-9
