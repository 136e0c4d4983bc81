"""Laws of the table, the same for every kind of it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.rocks_table import RocksTable
from streams.table import MemoryTable, Table
from streams.tiered_table import TieredTable
from tests.tables import MIB, key, vector

RAM_BYTES = 2_000  # a few vectors: most look-ups of the tiered table go below
keys = st.integers(0, 30).map(lambda number: number.to_bytes(16, "little"))
# On both sides of the size from which RocksDB keeps values as blobs, and of a write batch.
vectors = st.builds(
    lambda letter, size: letter * size, st.sampled_from([b"a", b"b"]), st.sampled_from([4, 511, 512, 1_536, 600_000])
)
puts = st.lists(st.dictionaries(keys, vectors, max_size=5), max_size=8)


def make(kind: str, folder: Path) -> Table:
    """A table of a kind, empty and large enough to forget nothing."""
    if kind == "memory":
        return MemoryTable()
    disk = RocksTable(folder, 512 * MIB)
    return disk if kind == "rocks" else TieredTable(disk, RAM_BYTES)


@pytest.fixture(params=["memory", "rocks", "tiered"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Table]:
    """One empty table of each kind."""
    made = make(request.param, tmp_path / "table")
    yield made
    made.close()


def test_a_new_table_is_empty(table):
    """It knows nothing, and reads `vectors` from the start."""
    assert table.offset == 0
    assert table.entries() == 0
    assert table.get_many([]) == []
    assert table.get_many([key(1), key(1)]) == [None, None]


def test_answers_stand_in_the_order_of_the_questions(table):
    """One answer a fingerprint, in place, repeats and unknown ones included."""
    table.put_many({key(number): vector(number) for number in range(10)}, 10)
    asked = [3, 99, 0, 3, 42, 9]
    assert list(table.get_many([key(number) for number in asked])) == [
        vector(number) if number < 10 else None for number in asked
    ]


def test_the_offset_is_the_one_stored_last(table):
    """Also when no vectors come with it, or it goes back because the topic was made anew."""
    for offset in (5, 2**40, 3):
        table.put_many({}, offset)
        assert table.offset == offset
    table.put_many({key(1): vector(1)}, 4)
    assert table.offset == 4


def test_a_vector_stored_again_is_the_last_one(table):
    """The table holds one vector a fingerprint."""
    table.put_many({key(1): vector(1)}, 1)
    assert table.get_many([key(1)]) == [vector(1)]
    table.put_many({key(1): vector(2)}, 2)
    assert table.get_many([key(1)]) == [vector(2)]


def test_the_offset_is_no_vector(table):
    """Whatever the table keeps beside its vectors, no fingerprint finds it."""
    table.put_many({}, 7)
    assert table.get_many([b"offset", b"offset".ljust(16, b"\x00")][1:]) == [None]


def test_entries_are_about_as_many_as_vectors(table):
    """RocksDB estimates: within a tenth, for vectors stored in batches as the pipeline stores them."""
    table.put_many({key(0): vector(0, 64)}, 1)
    assert table.entries() == 1
    for start in range(0, 2_000, 100):
        table.put_many({key(number): vector(number, 64) for number in range(start, start + 100)}, start + 100)
    assert table.entries() == pytest.approx(2_000, rel=0.1)


@pytest.mark.parametrize("kind", ["memory", "rocks", "tiered"])
@settings(max_examples=15)
@given(load=puts)
def test_a_table_is_a_dict(kind, load):
    """After any stores it answers as a dict does."""
    with tempfile.TemporaryDirectory() as folder:
        table, model = make(kind, Path(folder)), {}
        for number, some in enumerate(load):
            table.put_many(some, number + 1)
            model.update(some)
            asked = [bytes([number]) + bytes(15) for number in range(31)]
            assert list(table.get_many(asked)) == [model.get(fingerprint) for fingerprint in asked]
        assert table.offset == len(load)
        table.close()


def test_what_is_forgotten_is_gone_and_may_come_again(table):
    """Alone, whatever else is forgotten with it that was never there; its offset stays."""
    table.put_many({key(number): vector(number) for number in range(10)}, 10)
    assert None not in table.get_many([key(number) for number in range(10)])
    table.get_many([key(7)])  # so that it is in RAM, where there is a tier
    table.forget_many([key(3), key(99), key(7)])
    assert table.get_many([key(7)]) == [None]
    assert [number for number in range(10) if table.get_many([key(number)]) == [None]] == [3, 7]
    assert table.offset == 10
    table.put_many({key(3): vector(3)}, 11)
    assert table.get_many([key(3)]) == [vector(3)]
