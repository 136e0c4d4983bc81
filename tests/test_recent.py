"""Laws of the bounded map in RAM, against a list that is searched."""

from hypothesis import given
from hypothesis import strategies as st

from streams.recent import ENTRY_BYTES, RecentVectors

keys = st.integers(0, 7).map(lambda number: number.to_bytes(16, "big"))
steps = st.lists(st.tuples(keys, st.none() | st.binary(min_size=1, max_size=12)), max_size=60)


@given(steps, st.integers(0, 4 * (ENTRY_BYTES + 10)))
def test_it_is_a_least_recently_used_map(load, bytes_max):
    """It holds what a plain list in order of use holds, of which the oldest go until the bytes fit."""
    recent, model = RecentVectors(bytes_max), []
    for key, put in load:
        held = next((value for name, value in model if name == key), None)
        if put is None:
            assert recent.get(key) == held
        else:
            recent.put(key, put)
        vector = held if put is None else put
        model = [pair for pair in model if pair[0] != key]
        if vector is not None:
            model.append((key, vector))
        while sum(len(value) + ENTRY_BYTES for _, value in model) > bytes_max:
            model.pop(0)
        assert len(recent) == len(model)
    for key, vector in model:
        assert recent.get(key) == vector


@given(steps)
def test_without_room_it_holds_nothing(load):
    """A limit of 0 passes everything through."""
    recent = RecentVectors(0)
    for key, vector in load:
        recent.put(key, vector or b"x")
        assert recent.get(key) is None
    assert len(recent) == 0


def test_a_vector_that_was_asked_for_outlives_an_older_put():
    """The worked case: room for two, the first is used again, so the second goes for the third."""
    recent = RecentVectors(2 * (1 + ENTRY_BYTES))
    recent.put(b"first", b"1")
    recent.put(b"second", b"2")
    assert recent.get(b"first") == b"1"
    recent.put(b"third", b"3")
    assert [recent.get(key) for key in (b"first", b"second", b"third")] == [b"1", None, b"3"]
