"""Laws of the limit of the table on disk: two generations, of which the newest vectors stay."""

import shutil
from pathlib import Path

import pytest

from streams.rocks_table import RocksTable
from tests.tables import LIMIT, MIB, alive, copy_still, fill, key, vector
from tests.waiting import wait_until


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


def test_no_file_holds_what_was_forgotten(tmp_path):
    """In neither generation, once files were rewritten; all else is there, and a crash brings nothing back."""
    table = RocksTable(tmp_path / "table", LIMIT)
    count = 0
    while not (tmp_path / "table" / "2").exists():
        count += 64
        fill(table, count - 64, count)
    fill(table, count, 2 * count - 1_024)
    gone = {0x0A0B, 0x1A0B, count + 0x0A0B}  # no shift of the bytes of one is another vector
    held = set(alive(table, 2 * count - 1_024))
    assert gone <= held
    table.forget_many([key(number) for number in gone])
    copy_still(tmp_path / "table", tmp_path / "crashed")
    wait_until(lambda: not (gone & in_files(tmp_path / "table", gone)), "no file holds them")
    assert set(alive(table, 2 * count - 1_024)) == held - gone
    table.close()
    assert not in_files(tmp_path / "table", gone)
    (tmp_path / "crashed" / "PURGE").touch()
    crashed = RocksTable(tmp_path / "crashed", LIMIT)
    wait_until(lambda: not (gone & in_files(tmp_path / "crashed", gone)), "who opens it goes on with that")
    wait_until(lambda: not (tmp_path / "crashed" / "PURGE").exists(), "it is done")
    assert not gone & set(alive(crashed, 2 * count - 1_024))
    crashed.close()


def in_files(folder: Path, numbers: set[int]) -> set[int]:
    """Which of these vectors any file of a folder holds."""
    found: set[int] = set()
    for path in folder.rglob("*"):
        try:
            data = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:  # compaction was quicker
            continue
        found |= {number for number in numbers if vector(number) in data}
    return found
