"""Laws of the table, the same for every kind of it, and what only the one on disk has to hold."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from schemas.errors import Fatal
from streams.rocks_table import RocksTable
from streams.table import MemoryTable, Table
from streams.tiered_table import TieredTable

MIB = 2**20
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


def vector(number: int, size: int = 1_024) -> bytes:
    """A vector that is no other's, and does not compress."""
    return number.to_bytes(4, "big") * (size // 4)


def key(number: int) -> bytes:
    """A fingerprint."""
    return number.to_bytes(16, "big")


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
@settings(max_examples=15, deadline=None)
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


def copy_still(before: Path, after: Path) -> None:
    """Copy a folder as it is at one moment: again, until no compaction in the background came between."""
    for _ in range(100):
        names = {path.relative_to(before) for path in before.rglob("*")}
        try:
            shutil.copytree(before, after, ignore=shutil.ignore_patterns("LOCK"))
        except shutil.Error:
            shutil.rmtree(after)
            continue
        if names == {path.relative_to(before) for path in before.rglob("*")}:
            return
        shutil.rmtree(after)
    raise AssertionError("RocksDB never rests")


class DiskMachine(RuleBasedStateMachine):
    """RocksTable against a dict, through closes and crashes; a crash leaves what the files hold at that moment."""

    @initialize()
    def begin(self):
        """A table in a folder of its own."""
        self.root = Path(tempfile.mkdtemp())
        self.number = 0
        self.model, self.offset = {}, 0
        self.table = self._open()

    def _open(self):
        return RocksTable(self.root / str(self.number), 512 * MIB)

    @rule(some=st.dictionaries(keys, vectors, max_size=5))
    def put(self, some):
        """Store, with the offset that follows."""
        self.offset += 1
        self.table.put_many(some, self.offset)
        self.model.update(some)

    @rule(asked=st.lists(keys, max_size=10))
    def get(self, asked):
        """Ask, in any order, with repeats."""
        assert self.table.get_many(asked) == [self.model.get(fingerprint) for fingerprint in asked]

    @rule()
    def reopen(self):
        """An orderly stop and start."""
        self.table.close()
        self.table = self._open()

    @rule()
    def crash(self):
        """The process is gone without a word: another one opens what it has written."""
        before = self.root / str(self.number)
        self.number += 1
        copy_still(before, self.root / str(self.number))
        self.table.close()
        shutil.rmtree(before)
        self.table = self._open()

    @invariant()
    def the_offset_is_there(self):
        """The offset beside the data is the one stored with it."""
        assert self.table.offset == self.offset

    def teardown(self):
        """At the end all of it is there."""
        assert self.table.get_many(list(self.model)) == list(self.model.values())
        self.table.close()
        shutil.rmtree(self.root)


TestDiskMachine = DiskMachine.TestCase
TestDiskMachine.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)


LIMIT = 16 * MIB


def fill(table: RocksTable, start: int, end: int) -> int:
    """Store vectors of 1 KiB by 64; the size at its largest."""
    largest = 0
    for first in range(start, end, 64):
        table.put_many({key(number): vector(number) for number in range(first, min(end, first + 64))}, first + 64)
        largest = max(largest, table.size_bytes())
    return largest


def alive(table: RocksTable, end: int) -> list[int]:
    """The numbers of the vectors that are held; each is checked to be the right one."""
    found = table.get_many([key(number) for number in range(end)])
    held = [number for number, value in enumerate(found) if value is not None]
    assert all(found[number] == vector(number) for number in held)
    return held


def test_at_its_limit_the_newest_half_stays(tmp_path):
    """Bytes stay within the limit and a sixteenth; what is held is the newest, without a hole, and no less than
    two fifths of the limit; the offset goes on.
    """
    table, count = RocksTable(tmp_path, LIMIT), 0
    for _ in range(10):
        before, count = count, count + 4_096
        assert fill(table, before, count) <= LIMIT * 17 / 16
        held = alive(table, count)
        assert held == list(range(held[0], count))
        assert len(held) * 1_024 >= min(count * 1_024, LIMIT * 2 / 5)
        assert table.offset == count
    table.close()


def test_what_stays_at_the_limit_is_there_after_a_restart(tmp_path):
    """Both generations and the offset survive a close; the folder holds no third one."""
    table = RocksTable(tmp_path, LIMIT)
    fill(table, 0, 30_720)
    held = alive(table, 30_720)
    table.close()
    assert len([path for path in tmp_path.iterdir() if path.name.isdecimal()]) == 2
    table = RocksTable(tmp_path, LIMIT)
    assert alive(table, 30_720) == held
    assert table.offset == 30_720
    fill(table, 30_720, 61_440)
    assert table.offset == 61_440
    assert max(alive(table, 61_440)) == 61_439
    table.close()


def test_the_disk_is_given_back(tmp_path):
    """What was evicted takes no place in the folder, all that RocksDB writes included."""
    table = RocksTable(tmp_path, LIMIT)
    fill(table, 0, 61_440)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 2 * LIMIT
    table.close()


@pytest.mark.parametrize("bytes_max", [256 * 1024, MIB, 4 * MIB])
def test_a_small_share_is_used_too(tmp_path, bytes_max):
    """A partition's share of the smallest table_disk_mib among many partitions: still bounded, still no less than
    two fifths used.
    """
    table, count = RocksTable(tmp_path, bytes_max), 5 * bytes_max // 1_024
    largest = fill(table, 0, count)
    held = len(alive(table, count)) * 1_024
    table.close()
    assert held >= bytes_max * 2 / 5
    assert largest <= bytes_max * 3 / 2


def test_a_rotation_that_was_cut_short_is_finished(tmp_path):
    """Generations beyond two are deleted at the start; the newest two serve."""
    for number in (1, 2, 3):
        table = RocksTable(tmp_path / "made", LIMIT)
        table.put_many({key(number): vector(number)}, number)
        table.close()
        (tmp_path / "kept").mkdir(exist_ok=True)
        (tmp_path / "made" / "1").rename(tmp_path / "kept" / str(number))
    table = RocksTable(tmp_path / "kept", LIMIT)
    assert table.get_many([key(1), key(2), key(3)]) == [None, vector(2), vector(3)]
    assert table.offset == 3
    table.close()
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["2", "3"]


def test_a_crash_right_after_a_rotation_keeps_the_offset(tmp_path):
    """A new generation that was opened and never written changes nothing: the offset is the one last stored."""
    table = RocksTable(tmp_path / "made", LIMIT)
    table.put_many({key(1): vector(1)}, 9)
    table.close()
    RocksTable(tmp_path / "empty", LIMIT).close()
    (tmp_path / "empty" / "1").rename(tmp_path / "made" / "2")
    table = RocksTable(tmp_path / "made", LIMIT)
    assert (table.get_many([key(1)]), table.offset) == ([vector(1)], 9)
    table.close()


def test_a_held_folder_is_refused(tmp_path):
    """Two owners would overwrite each other: the second one is told, in one line, whose table it is."""
    table = RocksTable(tmp_path, LIMIT)
    with pytest.raises(Fatal, match=r"held by another process.*data_dir") as caught:
        RocksTable(tmp_path, LIMIT)
    assert "\n" not in str(caught.value)
    table.close()
    RocksTable(tmp_path, LIMIT).close()


def test_a_folder_held_by_another_process_is_refused(tmp_path):
    """So it is between processes, until the other one ends, however it ends."""
    code = (
        "import sys; from pathlib import Path; from streams.rocks_table import RocksTable\n"
        f"table = RocksTable(Path({str(tmp_path)!r}), {LIMIT}); print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Fatal, match="held by another process"):
            RocksTable(tmp_path, LIMIT)
        other.kill()
    RocksTable(tmp_path, LIMIT).close()


def test_a_damaged_table_says_what_to_do(tmp_path):
    """A table is a cache: one that cannot be read is to be deleted, and the error says so."""
    table = RocksTable(tmp_path, LIMIT)
    fill(table, 0, 64)
    table.close()
    next(tmp_path.rglob("CURRENT")).write_bytes(b"nonsense\n")
    with pytest.raises(Fatal, match="delete the folder, it is refilled") as caught:
        RocksTable(tmp_path, LIMIT)
    assert "\n" not in str(caught.value)


def test_a_full_disk_ends_in_one_clear_line(small_disk):
    """Storing fails with the remedy, closing afterwards does not fail over it, and opening says the same."""
    table = RocksTable(small_disk / "table", 64 * MIB)
    with pytest.raises(Fatal, match=r"disk full under .*table_disk_mib.*data_dir") as caught:
        fill(table, 0, 8_192)
    assert "\n" not in str(caught.value)
    table.close()
    with pytest.raises(Fatal, match="disk full under "):
        RocksTable(small_disk / "table", 64 * MIB)
