"""The table on disk: RocksDB through rocksdict, in raw mode (its default pickles)."""

import errno
import logging
import shutil
from pathlib import Path
from typing import Any, cast

from rocksdict import AccessType, BlockBasedOptions, Cache, Options, Rdict, WriteBatch

from schemas.errors import Fatal

_log = logging.getLogger("manyray.table")

_OFFSET = b"offset"  # 6 bytes: no fingerprint, which has 16, can be equal
_WRITE_BATCH_BYTES = 1_000_000  # rocksdict's `write` holds the GIL, so a batch is bounded
_MEMTABLE_BYTES = 16 * 1024 * 1024
_MEMTABLE_BYTES_MIN = 64 * 1024
_INDEX_CACHE_BYTES = 64 * 1024 * 1024


class RocksTable:
    """A table in RocksDB: vectors as blobs, apart from the keys, so that compaction does not rewrite them.

    It is bounded by two generations of half of `bytes_max` each: vectors are written to the newer; when that is full,
    the older is deleted whole and a new one begins. What is evicted so is computed again when it is next met.
    """

    def __init__(self, folder: Path, bytes_max: int, index_cache: Cache | None = None) -> None:
        """Open or create the table in `folder`; `index_cache` is shared by the tables of a process.

        Raises:
            Fatal: the folder cannot be used (disk full, no permission, held by another process).
        """
        self._folder = folder
        self._half_bytes = max(1, bytes_max // 2)
        # Of a small table the memtable is a part that counts: an eighth of the whole at most.
        memtable_bytes = max(_MEMTABLE_BYTES_MIN, min(_MEMTABLE_BYTES, bytes_max // 8))
        self._options = _options(index_cache or Cache(_INDEX_CACHE_BYTES), memtable_bytes)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
            for number in numbers[:-2]:  # a rotation that was cut short
                shutil.rmtree(folder / str(number))
            self._generations = [(number, self._open(number)) for number in (numbers or [1])[-2:]]
        except Exception as error:
            raise _explain(error, folder) from None
        # A crash between a rotation and the first write leaves a newest one without an offset.
        self.offset = _offset_of(self._newest) or _offset_of(self._generations[0][1])
        self._unchecked_bytes = self._half_bytes  # so that the first write looks at the size

    def get_many(self, fingerprints: list[bytes]) -> list[bytes | None]:
        """See `Table`."""
        if not fingerprints:
            return []
        try:
            found = _get(self._newest, fingerprints)
            if len(self._generations) > 1 and None in found:
                missing = [index for index, vector in enumerate(found) if vector is None]
                older = _get(self._generations[0][1], [fingerprints[index] for index in missing])
                for index, vector in zip(missing, older, strict=True):
                    found[index] = vector
        except Exception as error:
            raise _explain(error, self._folder) from None
        return found

    def put_many(self, vectors: dict[bytes, bytes], offset: int) -> None:
        """See `Table`; atomic within a megabyte, and the offset goes last.

        Raises:
            Fatal: the disk is full, or fails.
        """
        try:
            self._rotate_when_full()
            batch, size = WriteBatch(raw_mode=True), 0
            for fingerprint, vector in vectors.items():
                batch.put(fingerprint, vector)
                size += len(vector)
                if size >= _WRITE_BATCH_BYTES:
                    self._newest.write(batch)
                    self._unchecked_bytes += size
                    batch, size = WriteBatch(raw_mode=True), 0
            batch.put(_OFFSET, offset.to_bytes(8, "big"))
            self._newest.write(batch)
            self._unchecked_bytes += size
        except Exception as error:
            raise _explain(error, self._folder) from None
        self.offset = offset

    def entries(self) -> int:
        """See `Table`."""
        counts = [_property(database, "rocksdb.estimate-num-keys") for _, database in self._generations]
        return max(0, sum(counts) - len(counts))  # each holds an offset too

    def size_bytes(self) -> int:
        """See `Table`."""
        return sum(_size(database) for _, database in self._generations)

    def close(self) -> None:
        """See `Table`."""
        for _, database in self._generations:
            try:
                database.close()
            except Exception as error:  # after a failed write it fails too; what is lost is read from `vectors` again
                _log.debug("closing %s: %s", self._folder, error)

    @property
    def _newest(self) -> Rdict:
        return self._generations[-1][1]

    def _open(self, number: int) -> Rdict:
        return Rdict(str(self._folder / str(number)), options=self._options, access_type=AccessType.read_write())

    def _rotate_when_full(self) -> None:
        # Asking RocksDB for its size costs more than a write: it is asked once every 64th of the limit.
        if self._unchecked_bytes * 64 < self._half_bytes:
            return
        self._unchecked_bytes = 0
        if _size(self._newest) < self._half_bytes:
            return
        if len(self._generations) > 1:
            number, oldest = self._generations.pop(0)
            oldest.close()
            shutil.rmtree(self._folder / str(number), ignore_errors=True)
        number = self._generations[-1][0] + 1
        self._generations.append((number, self._open(number)))


def index_cache() -> Cache:
    """The cache of indexes and filters that all tables of a process share."""
    return Cache(_INDEX_CACHE_BYTES)


def _options(cache: Cache, memtable_bytes: int) -> Options:
    """RocksDB for write-once values of a kilobyte or two that are found by exact key."""
    blocks = BlockBasedOptions()
    blocks.set_bloom_filter(10, block_based=False)
    blocks.set_block_cache(cache)
    blocks.set_cache_index_and_filter_blocks(True)
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(blocks)
    options.set_enable_blob_files(True)
    options.set_min_blob_size(512)
    options.set_enable_blob_gc(True)
    options.set_write_buffer_size(memtable_bytes)
    options.set_arena_block_size(memtable_bytes // 8)
    options.set_max_total_wal_size(2 * memtable_bytes)
    options.set_max_open_files(256)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1_000_000)
    return options


def _get(database: Rdict, fingerprints: list[bytes]) -> list[bytes | None]:
    return cast(list[bytes | None], database.get(cast(Any, fingerprints)))


def _offset_of(database: Rdict) -> int:
    stored = database.get(_OFFSET)
    return int.from_bytes(stored, "big") if stored else 0


def _property(database: Rdict, name: str) -> int:
    return int(database.property_int_value(name) or 0)


def _size(database: Rdict) -> int:
    names = ("rocksdb.total-sst-files-size", "rocksdb.total-blob-file-size", "rocksdb.cur-size-all-mem-tables")
    return sum(_property(database, name) for name in names)


def _explain(error: Exception, folder: Path) -> Fatal:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "No space left" in text or getattr(error, "errno", None) == errno.ENOSPC:
        return Fatal(f"disk full under {folder}: free space, lower table_disk_mib, or move data_dir")
    if "Too many open files" in text or getattr(error, "errno", None) == errno.EMFILE:
        return Fatal(f"table {folder} cannot be opened: too many open files; raise the limit (ulimit -n)")
    if "lock" in text.lower() and "LOCK" in text:
        return Fatal(f"table {folder} is held by another process: stop it, or give this one its own data_dir")
    if "Permission denied" in text or "Read-only" in text:
        return Fatal(f"table {folder} cannot be written: make data_dir writable for this user")
    return Fatal(f"table {folder} cannot be used ({text}): delete the folder, it is refilled from the vectors topic")
