"""Laws of the table, the same for every kind of it, and what only the one on disk has to hold."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from schemas.errors import Fatal, Retry
from streams.rocks_table import RocksTable
from streams.table import MemoryTable, Table
from streams.tiered_table import TieredTable

MIB = 2**20
SMALL = 4 * MIB  # so that it goes from memory to disk every few hundred vectors
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
    """RocksTable against a dict, through closes and crashes; a crash leaves what the files hold at that moment.

    A fingerprint has one vector for ever, as in the pipeline.
    """

    @initialize()
    def begin(self):
        """A table in a folder of its own."""
        self.root = Path(tempfile.mkdtemp())
        self.number = 0
        self.puts = []
        self.table = self._open()

    def _open(self):
        return RocksTable(self.root / str(self.number), SMALL)

    @rule(numbers=st.lists(st.integers(0, 400), max_size=200))
    def put(self, numbers):
        """Store, with the offset that follows."""
        self.puts.append(set(numbers))
        self.table.put_many({key(number): vector(number) for number in numbers}, len(self.puts))

    @rule(asked=st.lists(st.integers(0, 400), max_size=10))
    def get(self, asked):
        """Ask, in any order, with repeats: what was stored before the offset is there, and nothing wrong."""
        found = self.table.get_many([key(number) for number in asked])
        stored = set[int]().union(*self.puts)
        for number, value in zip(asked, found, strict=True):
            assert value == (vector(number) if number in stored else None)

    @rule()
    def reopen(self):
        """An orderly stop and start loses nothing."""
        self.table.close()
        self.table = self._open()
        assert self.table.offset == len(self.puts)

    @rule()
    def crash(self):
        """The process is gone without a word: the next one finds an older table, and refills it from its offset."""
        before = self.root / str(self.number)
        self.number += 1
        copy_still(before, self.root / str(self.number))
        self.table.close()
        shutil.rmtree(before)
        self.table = self._open()
        lost, self.puts = self.puts[self.table.offset :], self.puts[: self.table.offset]
        self.get(sorted(set[int]().union(*self.puts)))
        for numbers in lost:
            self.put(sorted(numbers))

    @invariant()
    def the_offset_is_there(self):
        """The offset beside the data is the one stored with it."""
        assert self.table.offset == len(self.puts)

    def teardown(self):
        """At the end all of it is there."""
        self.get(list(range(401)))
        self.table.close()
        shutil.rmtree(self.root)


TestDiskMachine = DiskMachine.TestCase
TestDiskMachine.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)


LIMIT = 16 * MIB


def fill(table: RocksTable, start: int, end: int) -> int:
    """Store vectors of 1 KiB by 64; the size at its largest."""
    largest = 0
    for first in range(start, end, 64):
        last = min(end, first + 64)
        table.put_many({key(number): vector(number) for number in range(first, last)}, last)
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
    shutil.copy(tmp_path / "made" / "FORMAT", tmp_path / "kept")
    table = RocksTable(tmp_path / "kept", LIMIT)
    assert table.get_many([key(1), key(2), key(3)]) == [None, vector(2), vector(3)]
    assert table.offset == 3
    table.close()
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["2", "3", "FORMAT"]


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
    with pytest.raises(Retry, match=r"held by another process.*data_dir") as caught:
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
        with pytest.raises(Retry, match="held by another process"):
            RocksTable(tmp_path, LIMIT)
        other.kill()
    RocksTable(tmp_path, LIMIT).close()


def flip(data: bytes) -> bytes:
    """The same length, one byte in the middle changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :] if data else b"?"


DAMAGES = {
    "empty": lambda data: b"",
    "cut to one byte": lambda data: data[:1],
    "cut to a quarter": lambda data: data[: len(data) // 4],
    "cut to half": lambda data: data[: len(data) // 2],
    "cut by one byte": lambda data: data[:-1],
    "one byte changed": flip,
    "zeros": lambda data: bytes(len(data)),
    "others' bytes": lambda data: b"nonsense" * (1 + len(data) // 8),
    "gone": lambda data: None,
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("crashed", [False, True])
def test_a_damaged_table_never_lies(tmp_path, how, crashed):
    """Whichever of its files is damaged: either every vector stored before its offset is found, or the table begins
    anew, empty and with offset 0. It opens in any case.
    """
    table = RocksTable(tmp_path / "whole", SMALL)
    fill(table, 0, 1_500)
    if crashed:
        copy_still(tmp_path / "whole", tmp_path / "crashed")
    table.close()
    whole, anew = tmp_path / ("crashed" if crashed else "whole"), 0
    for victim in sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file()):
        folder = tmp_path / "damaged"
        shutil.copytree(whole, folder)
        damaged = DAMAGES[how]((folder / victim).read_bytes())
        (folder / victim).unlink()
        if damaged is not None:
            (folder / victim).write_bytes(damaged)
        table = RocksTable(folder, SMALL)
        try:
            assert alive(table, table.offset) == list(range(table.offset))
        except Retry:
            assert (table.offset, alive(table, 1_500)) == (0, [])
        anew += table.offset == 0
        fill(table, 1_500, 3_000)
        assert set(range(1_500, 3_000)) <= set(alive(table, 3_000))
        table.close()
        shutil.rmtree(folder)
    assert anew >= 3


def test_a_damaged_table_is_set_aside_once(tmp_path, caplog):
    """Its folder is kept under another name, the newest such only; it is counted, and told in one line each time."""
    counted = []
    for _ in range(2):
        table = RocksTable(tmp_path / "0", LIMIT)
        fill(table, 0, 64)
        table.close()
        next((tmp_path / "0").rglob("CURRENT")).write_bytes(b"nonsense\n")
        table = RocksTable(tmp_path / "0", LIMIT, on_corrupt=lambda: counted.append(1))
        assert (table.offset, alive(table, 64)) == (0, [])
        table.close()
        (aside,) = tmp_path.glob("0.corrupt-*")
        assert next(aside.rglob("CURRENT")).read_bytes() == b"nonsense\n"
    said = [record.getMessage() for record in caplog.records if record.name == "manyray.table"]
    assert len(counted) == len(said) == 2
    assert all(str(tmp_path / "0") in line and aside.name[:10] in line and "\n" not in line for line in said)


def test_damage_that_is_found_late_begins_the_table_anew(tmp_path):
    """Values are checked when they are read: the look-up says Retry, and after it the table is empty and takes more."""
    table = RocksTable(tmp_path / "0", LIMIT)
    fill(table, 0, 64)
    table.close()
    table = RocksTable(tmp_path / "0", LIMIT)
    for blob in (tmp_path / "0").rglob("*.blob"):
        blob.write_bytes(flip(blob.read_bytes()))
    with pytest.raises(Retry, match=r"was damaged .*begun anew"):
        alive(table, 64)
    assert (table.offset, alive(table, 64)) == (0, [])
    fill(table, 0, 64)
    assert alive(table, 64) == list(range(64))
    table.close()


def test_a_table_that_is_deleted_under_its_process_begins_anew(tmp_path):
    """The first write that needs a file says Retry; then the table is empty, and takes more."""
    table = RocksTable(tmp_path / "0", SMALL)
    fill(table, 0, 64)
    shutil.rmtree(tmp_path / "0")
    with pytest.raises(Retry, match=r"was damaged .*begun anew"):
        fill(table, 64, 100_000)
    assert table.offset == 0
    fill(table, 0, 64)
    assert alive(table, 64) == list(range(64))
    table.close()


def test_an_older_copy_is_an_older_table(tmp_path):
    """A snapshot that is put back has the offset of its time, and all that was stored before it."""
    table = RocksTable(tmp_path / "0", LIMIT)
    fill(table, 0, 640)
    table.close()
    shutil.copytree(tmp_path / "0", tmp_path / "snapshot")
    table = RocksTable(tmp_path / "0", LIMIT)
    fill(table, 640, 6_400)
    table.close()
    shutil.rmtree(tmp_path / "0")
    (tmp_path / "snapshot").rename(tmp_path / "0")
    table = RocksTable(tmp_path / "0", LIMIT)
    assert (table.offset, alive(table, 6_400)) == (640, list(range(640)))
    table.close()


@pytest.mark.parametrize("found", [None, b"", b"0"])
def test_a_table_of_another_format_is_removed(tmp_path, caplog, found):
    """It is never misread: the table begins anew, and one line says why; the format is written for the next time."""
    table = RocksTable(tmp_path / "0", LIMIT)
    fill(table, 0, 64)
    table.close()
    (tmp_path / "0" / "FORMAT").unlink()
    if found is not None:
        (tmp_path / "0" / "FORMAT").write_bytes(found)
    for count, expected in ((0, []), (64, list(range(64)))):
        table = RocksTable(tmp_path / "0", LIMIT)
        assert (table.offset, alive(table, 64)) == (count, expected)
        fill(table, 0, 64)
        table.close()
    assert [record.getMessage() for record in caplog.records if "format" in record.getMessage()] == [
        f"table {tmp_path / '0'} is of format {(found or b'').decode()!r}, not '1': removed, to be refilled"
    ]


def test_a_crash_after_a_rotation_leaves_no_hole(tmp_path):
    """What stood in memory when a generation was full is on disk before the next one begins."""
    table = RocksTable(tmp_path / "0", LIMIT)
    count = 0
    while not (tmp_path / "0" / "2").exists():
        count += 64
        fill(table, count - 64, count)
    fill(table, count, 2 * count - 1_024)
    copy_still(tmp_path / "0", tmp_path / "crashed")
    table.close()
    table = RocksTable(tmp_path / "crashed", LIMIT)
    assert table.offset > count
    assert alive(table, table.offset) == list(range(table.offset))
    table.close()


def test_a_crash_within_a_large_store_keeps_the_older_offset(tmp_path):
    """A store that goes to disk in parts is not done before its last part: the offset is not ahead of any vector."""
    table = RocksTable(tmp_path / "0", SMALL)
    table.put_many({key(number): vector(number) for number in range(3_000)}, 3_000)
    copy_still(tmp_path / "0", tmp_path / "crashed")
    table.close()
    table = RocksTable(tmp_path / "crashed", SMALL)
    assert alive(table, 3_000) != []
    assert alive(table, table.offset) == list(range(table.offset))
    table.close()


def test_a_process_that_is_killed_leaves_a_consistent_table(tmp_path):
    """After kill -9 amid writes every vector stored before the offset is found, time after time."""
    code = (
        "from pathlib import Path; from streams.rocks_table import RocksTable; from tests.test_table import fill\n"
        f"table = RocksTable(Path({str(tmp_path)!r}), {64 * MIB})\n"
        "while True:\n"
        "    fill(table, table.offset, table.offset + 640); print(table.offset, flush=True)"
    )
    reached = 0
    for _ in range(2):
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[1]) as writer:
            # RocksDB holds two buffers of 8 MiB in memory at most, so that the first is on disk by then.
            assert any(int(line) >= reached + 20_000 for line in writer.stdout)
            writer.kill()
        table = RocksTable(tmp_path, 64 * MIB)
        assert table.offset > reached
        reached = table.offset
        assert alive(table, reached) == list(range(reached))
        table.close()


def test_a_full_disk_ends_in_one_clear_line(small_disk):
    """Storing fails with the remedy, closing afterwards does not fail over it, and opening says the same."""
    table = RocksTable(small_disk / "table", 64 * MIB)
    with pytest.raises(Fatal, match=r"disk full under .*table_disk_mib.*data_dir") as caught:
        fill(table, 0, 65_536)
    assert "\n" not in str(caught.value)
    table.close()
    with suppress(OSError), (small_disk / "others").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4_096))
    with pytest.raises(Fatal, match="disk full under "):
        RocksTable(small_disk / "new", 64 * MIB)
