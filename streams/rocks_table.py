"""The table on disk: RocksDB through rocksdict, in raw mode (its default pickles)."""

import errno
import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    BottommostLevelCompaction,
    Cache,
    CompactOptions,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from schemas.errors import Fatal, ManyrayError, Retry
from streams import clock
from streams.table_folder import claim, set_aside

_log = logging.getLogger("manyray.table")

_OFFSET = b"offset"  # 6 bytes: no fingerprint, which has 16, can be equal
_WRITE_BATCH_BYTES = 1_000_000  # rocksdict's `write` holds the GIL, so a batch is bounded
_STALL_WAIT_S = 30.0
_WRITE_STALL = "Write stall"  # as RocksDB says that it has no room in memory until more is flushed
_STALL_PAUSE_S = 0.002
_MEMTABLE_BYTES = 16 * 1024 * 1024
_MEMTABLE_BYTES_MIN = 64 * 1024
_PURGE_FILE = "PURGE"
"""Beside the generations while files may hold what was forgotten."""
_BLOB_CUTOFF, _BLOB_CUTOFF_DEFAULT = "blob_garbage_collection_age_cutoff", "0.25"
_INDEX_CACHE_BYTES = 64 * 1024 * 1024


class RocksTable:
    """A table in RocksDB: vectors as blobs, apart from the keys, so that compaction does not rewrite them.

    It is bounded by two generations of half of `bytes_max` each: vectors are written to the newer; when that is full,
    the older is deleted whole and a new one begins. What is evicted so is computed again when it is next met.

    It has no write-ahead log: `vectors` is one. What is in memory goes to disk whole and in order, the offset with the
    vectors before it, so a crash leaves an older table, and what it lacks is read from `vectors` again.
    """

    def __init__(
        self,
        folder: Path,
        bytes_max: int,
        index_cache: Cache | None = None,
        on_corrupt: Callable[[], object] = lambda: None,
    ) -> None:
        """Open or create the table in `folder`; `index_cache` is shared by the tables of a process.

        A folder that is damaged is set aside, with a call of `on_corrupt`, and the table begins anew.

        Raises:
            Retry: another process holds the folder.
            Fatal: the folder cannot be used (disk full, no permission).
        """
        self._folder = folder
        self._on_corrupt = on_corrupt
        self._half_bytes = max(1, bytes_max // 2)
        # Of a small table the memtable is a part that counts: an eighth of the whole at most.
        memtable_bytes = max(_MEMTABLE_BYTES_MIN, min(_MEMTABLE_BYTES, bytes_max // 8))
        self._options = _options(index_cache or Cache(_INDEX_CACHE_BYTES), memtable_bytes)
        self._generations: list[tuple[int, Rdict]] = []
        self._purge: threading.Thread | None = None
        try:
            self._open_all()
        except Exception as error:
            self._begin_anew(error)

    def get_many(self, fingerprints: list[bytes]) -> list[bytes | None]:
        """See `Table`.

        Raises:
            Retry: the table was damaged, and has begun anew.
        """
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
            raise self._begin_anew(error) from None
        return found

    def put_many(self, vectors: dict[bytes, bytes], offset: int) -> None:
        """See `Table`; atomic within a megabyte, and the offset goes last.

        Raises:
            Retry: the table was damaged, and has begun anew.
            Fatal: the disk is full, or fails.
        """
        try:
            self._rotate_when_full()
            entries, size = list[tuple[bytes, bytes]](), 0
            for fingerprint, vector in vectors.items():
                entries.append((fingerprint, vector))
                size += len(vector)
                if size >= _WRITE_BATCH_BYTES:
                    self._write(entries)
                    self._unchecked_bytes += size
                    entries, size = [], 0
            entries.append((_OFFSET, offset.to_bytes(8, "big")))
            self._write(entries)
            self._unchecked_bytes += size
        except Exception as error:
            raise self._begin_anew(error) from None
        self.offset = offset

    def forget_many(self, fingerprints: list[bytes]) -> None:
        """See `Table`: no file holds these vectors either, once a thread of its own has rewritten them all.

        In what is older they are deleted for good first: a crash then leaves no offset that is ahead of that.

        Raises:
            Retry: the table was damaged, and has begun anew.
            Fatal: the disk is full, or fails.
        """
        try:
            for _, database in self._generations:
                held = [each for each, vector in zip(fingerprints, _get(database, fingerprints), strict=True) if vector]
                if not held:
                    continue
                (self._folder / _PURGE_FILE).touch()
                self._write([(fingerprint, None) for fingerprint in held], database)
                database.flush()
        except Exception as error:
            raise self._begin_anew(error) from None
        self._begin_purge()

    def entries(self) -> int:
        """See `Table`."""
        counts = [_property(database, "rocksdb.estimate-num-keys") for _, database in self._generations]
        return max(0, sum(counts) - len(counts))  # each holds an offset too

    def size_bytes(self) -> int:
        """See `Table`."""
        return sum(_size(database) for _, database in self._generations)

    def close(self) -> None:
        """See `Table`."""
        self._end_purge(is_last=True)
        while self._generations:
            _, database = self._generations.pop()
            try:
                database.close()
            except Exception as error:  # after a failed write it fails too; what is lost is read from `vectors` again
                _log.debug("closing %s: %s", self._folder, error)

    @property
    def _newest(self) -> Rdict:
        return self._generations[-1][1]

    def _open_all(self) -> None:
        self._generations = []
        for number in claim(self._folder) or [1]:
            self._generations.append((number, self._open(number)))
        # A crash between a rotation and the first flush leaves a newest one without an offset.
        self.offset = _offset_of(self._newest) or _offset_of(self._generations[0][1])
        self._unchecked_bytes = self._half_bytes  # so that the first write looks at the size
        self._begin_purge()

    def _open(self, number: int) -> Rdict:
        opened = Rdict(str(self._folder / str(number)), options=self._options, access_type=AccessType.read_write())
        writes = WriteOptions()
        cast(Any, writes).disable_wal = True  # a property, whatever its stub says
        writes.no_slowdown = True
        opened.set_write_options(writes)
        return opened

    def _write(self, entries: Sequence[tuple[bytes, bytes | None]], database: Rdict | None = None) -> None:
        """Write, to the newest unless another is given, once RocksDB has room in memory; within it a write would wait
        with the GIL, on a full disk for ever. A key without a value is deleted.
        """
        database = database or self._newest
        deadline_s = clock.monotonic_s() + _STALL_WAIT_S
        while True:
            batch = WriteBatch(raw_mode=True)  # a new one each time: a write that fails takes it too
            for key, value in entries:
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
            try:
                return database.write(batch)
            except Exception as error:
                if _WRITE_STALL not in str(error) or clock.monotonic_s() > deadline_s:
                    raise
            clock.sleep_s(_STALL_PAUSE_S)

    def _begin_purge(self) -> None:
        """Rewrite the files in which something forgotten may lie, if that is owed, after what is under way of it."""
        if not (self._folder / _PURGE_FILE).exists():
            return
        databases = [database for _, database in self._generations]
        self._purge = threading.Thread(
            target=_purge, args=(self._folder / _PURGE_FILE, databases, self._purge), name="purge", daemon=True
        )
        self._purge.start()

    def _end_purge(self, *, is_last: bool = False) -> None:
        """Wait for a purge, or cut it short where nothing is done here after it: it begins anew with the next owner."""
        if self._purge is not None:
            for _, database in self._generations if is_last else ():
                database.cancel_all_background(wait=False)
            self._purge.join()
            self._purge = None

    def _begin_anew(self, error: Exception) -> Retry:
        """Set a damaged table aside and open an empty one; the Retry says so.

        Raises:
            ManyrayError: the table is not damaged, `error` is another one.
        """
        self.close()
        if not is_damage(error):
            raise explain(error, self._folder) from None
        try:
            aside = set_aside(self._folder)
            self._open_all()
        except Exception as failed:
            raise explain(failed, self._folder) from None
        self._on_corrupt()
        text = f"table {self._folder} was damaged ({_first_line(error)}): kept as {aside.name}, and begun anew"
        _log.warning("%s; it is refilled from the vectors topic", text)
        return Retry(text)

    def _rotate_when_full(self) -> None:
        # Asking RocksDB for its size costs more than a write: it is asked once every 64th of the limit.
        if self._unchecked_bytes * 64 < self._half_bytes:
            return
        self._unchecked_bytes = 0
        if _size(self._newest) < self._half_bytes:
            return
        self._newest.flush()  # or a crash could find the next one on disk, and what was here still only in memory
        if len(self._generations) > 1:
            self._end_purge()
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
    options.set_max_open_files(256)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1_000_000)
    return options


def _purge(owed: Path, databases: Sequence[Rdict], before: threading.Thread | None) -> None:
    """Rewrite all files, without what was deleted: of some keys alone blobs would stay in files that others share."""
    if before is not None:
        before.join()
        owed.touch()  # which that one may have removed
    options = CompactOptions()
    options.set_bottommost_level_compaction(BottommostLevelCompaction.force())
    try:
        for database in databases:
            database.set_options({_BLOB_CUTOFF: "1.0"})  # of all blob files, and not of the oldest alone
            try:
                database.compact_range(None, None, options)
            finally:
                database.set_options({_BLOB_CUTOFF: _BLOB_CUTOFF_DEFAULT})
        owed.unlink(missing_ok=True)
    except Exception as error:
        _log.warning("files of %s may still hold what was forgotten, until it is opened again: %s", owed.parent, error)


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


def is_damage(error: Exception) -> bool:
    """Whether RocksDB found its files damaged: a checksum or a length that is wrong, or a file that is gone."""
    return _first_line(error).startswith(("Corruption:", "IO error: No such file"))


def explain(error: Exception, folder: Path) -> ManyrayError:
    """What keeps a table from being used, in one line with the remedy; a Retry if another process may let go of it."""
    text, number = _first_line(error), getattr(error, "errno", None)
    if "No space left" in text or number == errno.ENOSPC:
        return Fatal(f"disk full under {folder}: free space, lower table_disk_mib, or move data_dir")
    if "Too many open files" in text or number == errno.EMFILE:
        return Fatal(f"table {folder} cannot be opened: too many open files; raise the limit (ulimit -n)")
    if "/LOCK: " in text:
        return Retry(f"table {folder} is held by another process: stop it, or give this one its own data_dir")
    if "Permission denied" in text or "Read-only" in text:
        return Fatal(f"table {folder} cannot be written: make data_dir writable for this user")
    if _WRITE_STALL in text:
        return Fatal(f"table {folder} takes no more ({text}): its disk is too slow or hangs, check it")
    return Fatal(f"table {folder} cannot be used ({text}): delete the folder, it is refilled from the vectors topic")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
