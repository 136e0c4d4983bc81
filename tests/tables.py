"""Tables as tests fill, copy and damage them."""

import shutil
from pathlib import Path

from streams.rocks_table import RocksTable

MIB = 2**20
SMALL = 4 * MIB  # so that it goes from memory to disk every few hundred vectors
LIMIT = 16 * MIB


def vector(number: int, size: int = 1_024) -> bytes:
    """A vector that is no other's, and does not compress."""
    return number.to_bytes(4, "big") * (size // 4)


def key(number: int) -> bytes:
    """A fingerprint."""
    return number.to_bytes(16, "big")


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
