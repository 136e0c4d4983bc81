"""A lane: one owned partition's thread, table, producer and checkpoint. Knows nothing of Faust.

The order of steps is what makes it exactly once: fence the old owner, read the checkpoint, then read from there; in
each transaction the outputs, the misses and the new checkpoint; only after the commit is a record done.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace

from confluent_kafka import TopicPartition
from rocksdict import Cache

from schemas.chunk import parse_chunk
from schemas.content import fingerprints_in
from schemas.embedding import EmbeddingParts
from schemas.errors import Fatal, ManyrayError, Retry
from schemas.internal_pb2 import Chunk, Standing
from schemas.public_pb2 import CACHED
from streams import clients, clock
from streams.attempts import with_retries
from streams.checkpoint import KEY, Progress, read_progress
from streams.dedup import NOTHING, Actions, dedup, own_part
from streams.failpoints import reach
from streams.hits import embed_hits
from streams.learned import Learned
from streams.metrics import Metrics
from streams.partition_table import open_table
from streams.refill import refill
from streams.settings import Settings
from streams.table import Table
from streams.topics import Topics
from streams.transactions import VECTOR_BYTES_MAX, StageProducer

_log = logging.getLogger("manyray.lane")

STOP_TIMEOUT_S = 30.0
END_AFTER_S = 10.0
"""After a lane's last chunk its checkpoint goes to the end of `lookups`."""
END_AGAIN_S = 600.0
"""After that it is looked again: transactions that were aborted make the end move without a record."""
END_WAIT_S = 5.0
"""For the brokers' answer: a rebalance, or a stop, may wait for it."""
GAP_MIN = 100
"""Offsets without a record that are looked at: transactions that end leave fewer."""
_STATS_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record handed to a lane: a chunk of posts, or vectors for the table; `done` is called once."""

    value: bytes | None
    offset: int
    is_vectors: bool
    done: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Shared:
    """What the lanes of a version share in a process.

    standing: what the version is to its ray until `lookups` tells of it; by default the only one.
    """

    settings: Settings
    topics: Topics
    metrics: Metrics
    index_cache: Cache
    on_fatal: Callable[[ManyrayError], object]
    standing: Standing = field(default_factory=lambda: Standing(share=1, promoted=True))


@dataclass(frozen=True, slots=True)
class _LookedUp:
    """What of a chunk is this version's, what to do with its posts, and what the version is to them."""

    chunk: Chunk
    actions: Actions
    standing: Standing


class Lane:
    """`prepare`, then `start`; `put` records; `stop` ends it. The caller bounds how many records wait in it."""

    def __init__(self, shared: Shared, partition: int) -> None:
        self.partition = partition
        self.progress = Progress()
        self.entries = 0
        self.table_bytes = 0
        self.is_restoring = False
        self._shared = shared
        self._settings, self._topics, self._metrics = shared.settings, shared.topics, shared.metrics
        self._fingerprints = fingerprints_in(self._topics.version)
        self._parts = EmbeddingParts(self._topics.ray, self._topics.version, self._topics.form)
        self._stopping = threading.Event()
        self._producer = StageProducer.create(
            self._settings, f"{self._topics.dedup_group}.{partition}", self._metrics, self._stopping
        )
        self._table: Table | None = None
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._stats_s = 0.0
        self._look_s = 0.0
        self._is_last = False
        self._thread = threading.Thread(target=self._run, name=f"lane-{partition}", daemon=True)

    @property
    def lookups_offset(self) -> int:
        """Where to read `lookups` from."""
        return self.progress.lookups_offset

    @property
    def vectors_offset(self) -> int:
        """Where to read `vectors` from."""
        table = self._table  # another thread may ask while this one stops
        return table.offset if table else 0

    @property
    def waiting(self) -> int:
        """Records put and not yet taken."""
        return self._queue.qsize()

    def prepare(self) -> None:
        """Fence the old owner, read the checkpoint, open the table and refill it. Blocks; call it on a thread.

        Raises:
            Retry: it was given up.
            Fatal: this partition cannot be served.
        """
        with_retries(self._recover, self._stopping)
        with_retries(lambda: self._check_lookups(self.lookups_offset), self._stopping)
        self._table = open_table(
            self._settings,
            self._topics,
            self.partition,
            self._shared.index_cache,
            on_corrupt=self._metrics.table_corrupt.inc,
            stop=self._stopping,
        )
        with_retries(self._refill, self._stopping)
        self._note_stats()

    def start(self) -> None:
        """Begin to work on what is put."""
        self._thread.start()

    def put(self, record: Record) -> None:
        """Hand over a record; records of a topic come in the order of their offsets."""
        self._queue.put(record)

    def give_up(self) -> None:
        """Make a `prepare` that is under way end soon; `stop` follows."""
        self._stopping.set()

    def stop(self, *, is_last: bool = False) -> None:
        """Finish the transaction in hand, drop what waits, release table and producer.

        If it is the last that may be done here for long, the end is committed first, as after `END_AFTER_S`.

        Raises:
            Fatal: it did not end in time.
        """
        self._is_last = is_last
        self._stopping.set()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
            if self._thread.is_alive():
                raise Fatal(f"lane {self.partition} did not stop in {STOP_TIMEOUT_S:.0f} s; restart the process")
        self._producer.close()
        if self._table is not None:
            self._table.close()
            self._table = None

    def _run(self) -> None:
        try:
            self._look_s = clock.monotonic_s() + END_AFTER_S
            while not self._stopping.is_set():
                if clock.monotonic_s() > self._look_s:
                    self._commit_end()
                try:
                    record = self._queue.get(timeout=max(0.0, self._look_s - clock.monotonic_s()))
                except queue.Empty:
                    continue
                if record is None:
                    break
                if record.is_vectors:
                    self._learn(record)
                    continue
                records = self._gather(record)
                while records:
                    count = with_retries(lambda: self._write(records), self._stopping, self._restore)  # noqa: B023
                    reach("dedup.acking")
                    for written in records[:count]:
                        written.done()
                    reach("dedup.acked")
                    del records[:count]
            if self._is_last:
                with suppress(Fatal):  # which the next owner finds too
                    self._commit_end()
        except Retry as error:
            _log.debug("lane %d, stopping: %s", self.partition, error)  # its next owner reads the rest again
        except ManyrayError as error:
            self._shared.on_fatal(error)
        except BaseException as error:  # RocksDB's panics too: a thread that dies unseen stalls its partition for ever
            _log.debug("lane %d", self.partition, exc_info=True)
            self._shared.on_fatal(Fatal(f"lane {self.partition} failed: {type(error).__name__}: {error}"))

    def _gather(self, first: Record) -> list[Record]:
        """As many whole chunks as come within the commit interval, up to the limit of posts."""
        records = [first]
        most = max(1, self._settings.transaction_posts_max // self._settings.chunk_posts_max)
        deadline_s = clock.monotonic_s() + self._settings.commit_interval_ms / 1000
        while len(records) < most:
            try:
                record = self._queue.get(timeout=max(0.0, deadline_s - clock.monotonic_s()))
            except queue.Empty:
                break
            if record is None:
                self._stopping.set()
                break
            if not record.is_vectors:
                records.append(record)
                continue
            self._learn(record)
            if clock.monotonic_s() > deadline_s:  # vectors that come faster than they are learned would never end it
                break
        return records

    def _write(self, records: Sequence[Record]) -> int:
        """One transaction, of the first so many records: no more after the chunk that fills `VECTOR_BYTES_MAX`.

        Nothing of the lane changes before it is committed, so it can be done again.
        """
        count = vector_bytes = 0
        progress, accept_gaps = self.progress, self._settings.accept_gaps
        repeats = self._settings.delivery == "at_least_once"
        outcome: list[_LookedUp] = []
        for record in records:
            if vector_bytes >= VECTOR_BYTES_MAX:
                break
            count += 1
            where = f"{self._topics.lookups}/{self.partition} offset {record.offset}"
            chunk = parse_chunk(record.value, where, accept_gaps=accept_gaps)
            if record.offset < progress.lookups_offset:
                if not (accept_gaps or progress.has(chunk)):
                    raise self._made_anew(f"{where} is new, though the checkpoint is at {progress.lookups_offset}")
                continue  # done before a crash or a rebalance
            if record.offset >= progress.lookups_offset + GAP_MIN:
                self._check_lookups(progress.lookups_offset)
            found = self._look_up(chunk, progress.standing or self._shared.standing)
            progress = progress.told(chunk, self._topics.version).after(
                chunk, record.offset, hits=len(found.actions.hits), accept_gaps=accept_gaps, repeats=repeats
            )
            outcome.append(replace(found, actions=NOTHING) if chunk.probe else found)
            vector_bytes += found.actions.vector_bytes
        if not outcome:
            return count
        self._producer.begin()
        now_ms = clock.now_ms()
        for each in outcome:
            head = self._parts.head(CACHED, now_ms, each.standing)
            hits = embed_hits(each.chunk, each.actions, head, self._parts)
            self._producer.produce_keyed(hits, *self._topics.outputs(each.standing))
            for builder in each.actions.misses:
                own = builder.build(self._topics.version, standings=[each.standing])
                self._produce_miss(own)
            # Behind the misses before them; what is forgotten may be under way in either lane.
            if each.chunk.deletions or each.chunk.forgotten:
                each.chunk.standings.append(each.standing)
                self._produce_miss(each.chunk)
            if each.chunk.forgotten:
                each.chunk.backfill = not each.chunk.backfill
                self._produce_miss(each.chunk)
        reach("dedup.sent")
        self._commit(progress)
        self._look_s = clock.monotonic_s() + END_AFTER_S
        self._metrics.dedup_posts.inc(sum(len(each.chunk.ids) for each in outcome))
        self._metrics.dedup_hits.inc(sum(len(each.actions.hits) for each in outcome))
        self._metrics.dedup_misses.inc(sum(each.actions.miss_posts for each in outcome))
        return count

    def _commit(self, progress: Progress) -> None:
        self._producer.settle()
        self._producer.produce(self._topics.checkpoints, progress.to_bytes(), key=KEY, partition=self.partition)
        self._producer.commit()
        self.progress = progress

    def _commit_end(self) -> None:
        """Where `lookups` holds nothing more, move the checkpoint behind the marker of the last transaction.

        Retention removes it with the last record: a checkpoint before it would look as if records had been removed.

        Raises:
            Retry: brokers did not take it.
            Fatal: retention removed records before they were read.
        """
        self._look_s = clock.monotonic_s() + END_AFTER_S
        start = TopicPartition(self._topics.lookups, self.partition, self.lookups_offset)
        try:
            with closing(clients.reader(self._settings)) as reader:
                end, is_record = clients.first_from(reader, start, timeout_s=END_WAIT_S)
            self._check_lookups(self.lookups_offset, END_WAIT_S)  # or it is the end behind what is gone
        except Retry as error:
            _log.debug("lane %d does not know the end, and looks again: %s", self.partition, error)
            return
        if is_record:  # it is on its way here
            return

        def commit() -> None:
            if end > self.lookups_offset:
                self._producer.begin()
                self._commit(replace(self.progress, lookups_offset=end))

        with_retries(commit, self._stopping, self._recover)
        self._look_s = clock.monotonic_s() + END_AGAIN_S

    def _look_up(self, chunk: Chunk, standing: Standing) -> "_LookedUp":
        assert self._table is not None
        own = own_part(chunk, standing, self._fingerprints)
        return _LookedUp(own, dedup(own, self._table), standing)

    def _produce_miss(self, chunk: Chunk) -> None:
        topic = self._topics.backfill_misses if chunk.backfill else self._topics.misses
        self._producer.produce(topic, chunk.SerializeToString(), partition=self.partition)

    def _learn(self, record: Record) -> None:
        """Put computed vectors into the table, with the offset of the next record."""
        table = self._table
        assert table is not None

        def learn() -> None:
            if record.offset >= table.offset:  # else a refill went further
                learned = Learned.of(record.value, self._topics.version)
                if learned.copied:  # again it would put newer ones out
                    learned.vectors.clear()
                reach("dedup.learning")
                learned.put_into(table, record.offset + 1)
                self._metrics.table_learned.inc(len(learned.vectors))

        with_retries(learn, self._stopping, self._refill)
        self._note_stats()
        record.done()

    def _recover(self) -> None:
        """Fence, then read the checkpoint: the only way to know what was committed."""
        self._producer.open()
        self.progress = read_progress(self._settings, self._topics.checkpoints, self.partition)

    def _refill(self) -> None:
        """Read back what the table lacks: all of it when it began anew."""
        assert self._table is not None
        self.is_restoring = True
        try:
            refill(
                self._table, self._settings, self._topics, self.partition, metrics=self._metrics, stop=self._stopping
            )
        finally:
            self.is_restoring = False

    def _restore(self) -> None:
        """What was committed is read back, and what the table lacks: whichever of the two failed."""
        self._recover()
        self._refill()

    def _check_lookups(self, offset: int, timeout_s: float = clients.WATERMARKS_TIMEOUT_S) -> None:
        """Whether `lookups` still holds the next offset to be read, or will.

        Raises:
            Fatal: retention removed it, or the topic was made anew.
            Retry: the brokers did not answer in time.
        """
        place = f"{self._topics.lookups}/{self.partition}"
        with closing(clients.reader(self._settings)) as reader:
            low, end = clients.watermarks(reader, self._topics.lookups, self.partition, timeout_s=timeout_s)
        if end < offset:
            raise self._made_anew(f"{place} ends at {end}, before the checkpoint's {offset}")
        if low > offset and not self._settings.accept_gaps:
            raise clients.gone(place, offset)

    def _made_anew(self, found: str) -> Fatal:
        return Fatal(
            f"{found}: the topic was made anew, or lost its end; delete {self._topics.checkpoints} too and run "
            "`manyray topics create`"
        )

    def _note_stats(self) -> None:
        now_s = clock.monotonic_s()
        if self._table is not None and now_s >= self._stats_s:
            self._stats_s = now_s + _STATS_EVERY_S
            self.entries, self.table_bytes = self._table.entries(), self._table.size_bytes()
