"""Laws of the table on disk through crashes, damage, other owners and full disks."""

import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from schemas.errors import Fatal, Retry
from streams.rocks_table import RocksTable
from tests.tables import DAMAGES, LIMIT, MIB, SMALL, alive, copy_still, fill, flip, key, vector


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
TestDiskMachine.settings = settings(max_examples=12, stateful_step_count=20)


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
        f"table {tmp_path / '0'} is of format {(found or b'').decode()!r}, not '2': removed, to be refilled"
    ]


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
        "from pathlib import Path; from streams.rocks_table import RocksTable; from tests.tables import fill\n"
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
