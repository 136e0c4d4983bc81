"""Restoring a table on real Kafka: whatever became of it or of `vectors`, the lane serves and nothing is lost."""

import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Message, TopicPartition

from schemas.chunk import ChunkBuilder
from schemas.errors import Fatal, ManyrayError
from schemas.internal_pb2 import Source, Vectors
from streams import clients, clock
from streams.dedup_app import Lanes
from streams.lane import GAP_MIN, Lane, Record, Shared
from streams.metrics import Metrics
from streams.refill import progress, read_batch, refill
from streams.rocks_table import index_cache
from streams.settings import Settings
from streams.table import MemoryTable
from streams.table_folder import folder_of, spare_of
from streams.topics import Topics, create_topics
from streams.up import Pipeline
from streams.version import version_of
from tests.oracle import await_embeddings, post, read_embeddings, remove, send
from tests.tables import DAMAGES, key
from tests.test_pipeline import values
from tests.test_transport import write
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker

DIMS = 384
VECTORS_A_RECORD = 64


def vector(number: int) -> bytes:
    """A vector that is no other's, and does not compress."""
    return hashlib.shake_128(number.to_bytes(4, "little")).digest(4 * DIMS)


@pytest.fixture
def small(settings: Settings) -> Settings:
    """Settings whose tables are small and whole on disk, so that they are soon in files and read from them."""
    return settings.model_copy(update={"table_disk_mib": 64, "table_ram_mib": 0})


@pytest.fixture
def topics(small: Settings) -> Topics:
    """Those of the settings, which exist."""
    version = version_of(small)
    create_topics(small, version)
    return Topics.of(small, version)


def record_of(version: str, number: int) -> bytes:
    """The record of `vectors` with that number."""
    numbers = range(number * VECTORS_A_RECORD, (number + 1) * VECTORS_A_RECORD)
    fingerprints, vectors = b"".join(map(key, numbers)), b"".join(map(vector, numbers))
    return Vectors(version=version, dims=DIMS, fingerprints=fingerprints, vectors=vectors).SerializeToString()


def publish(settings: Settings, topics: Topics, count: int) -> None:
    """So many records into the first partition of `vectors`."""
    producer = clients.producer(settings)
    for number in range(count):
        producer.produce(topics.vectors, record_of(topics.version, number), partition=0)
    assert producer.flush(WAIT_S) == 0


class Trimming(MemoryTable):
    """A table that has something done to `vectors` when the first of it is stored."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self._then = then

    def put_many(self, vectors: dict[bytes, bytes], offset: int) -> None:
        """As every table; then, once, what was asked for."""
        super().put_many(vectors, offset)
        then, self._then = self._then, lambda: None
        then()


@pytest.mark.parametrize("kept", [0, 10])
def test_records_that_go_during_a_refill_are_passed_over(small: Settings, topics: Topics, kept: int) -> None:
    """Retention takes what is not read yet: the refill ends whole at the end, with all that is left."""
    count = 500  # some 50 MB: more than is fetched before the first of it is stored
    publish(small, topics, count)

    def trim() -> None:
        remove(small, topics.vectors, count - kept)

    table, metrics = Trimming(trim), Metrics.create()
    assert refill(table, small, topics, 0, metrics=metrics, stop=threading.Event())
    assert table.offset == count
    numbers = range((count - kept) * VECTORS_A_RECORD, count * VECTORS_A_RECORD)
    assert table.get_many([key(number) for number in numbers]) == [vector(number) for number in numbers]
    assert 0 < metrics.table_refilled._value.get() < count * VECTORS_A_RECORD
    assert metrics.table_restoring._value.get() == 0


def test_a_table_that_is_ahead_of_its_topic_reads_all_of_it(small: Settings, topics: Topics) -> None:
    """A topic that was made anew is shorter: the table goes back to its start."""
    publish(small, topics, 3)
    table = MemoryTable()
    table.put_many({}, 1_000)
    assert refill(table, small, topics, 0, metrics=Metrics.create(), stop=threading.Event())
    assert (table.offset, table.entries()) == (3, 3 * VECTORS_A_RECORD)


def test_brokers_that_do_not_answer_cost_misses_and_no_more(small: Settings, topics: Topics, caplog) -> None:
    """A partition that cannot be read is waited for as long as look-ups may wait: then they go on without it."""
    hasty = small.model_copy(update={"restore_wait_s": 0.5})
    absent = small.partitions
    table = MemoryTable()
    assert not refill(table, hasty, topics, absent, metrics=Metrics.create(), stop=threading.Event())
    assert (
        f"partition {absent}: table not whole after restore_wait_s = 0.5 s; misses until it is (offsets of"
        in caplog.text
    )


def test_a_refill_goes_on_when_the_brokers_answer_again(settings: Settings, caplog) -> None:
    """What it could not read at first it reads as soon as it can."""
    caplog.set_level("DEBUG", "manyray.refill")
    topics, table, outcome = Topics.of(settings, version_of(settings)), MemoryTable(), list[bool]()

    def read() -> None:
        outcome.append(refill(table, settings, topics, 0, metrics=Metrics.create(), stop=threading.Event()))

    reading = threading.Thread(target=read)
    reading.start()
    wait_until(lambda: "partition 0 is not refilled yet" in caplog.text, "it was not answered")
    create_topics(settings, topics.version)
    reading.join(WAIT_S)
    assert outcome == [True]


def test_what_follows_an_end_is_read_too(small: Settings, topics: Topics) -> None:
    """One read may bring an end of the partition as it was, and records that came behind it."""
    messages: list[Message] = []
    with closing(clients.reader(small)) as reader:
        reader.assign([TopicPartition(topics.vectors, 0, 0)])
        for count in (1, 2):
            publish(small, topics, 1)
            wait_until(
                lambda count=count: messages and messages[-1].error() and messages[-1].offset() == count,
                "the end is read",
                lambda: messages.extend(reader.consume(1, 0.1)),
            )
    batch = read_batch(messages, topics.version)
    assert (batch.offset, batch.ended) == (2, True)
    while messages[-1].error():
        messages.pop()
    batch = read_batch(messages, topics.version)
    assert (batch.offset, batch.ended) == (2, False)


def test_progress_is_told_in_words() -> None:
    """Share, vectors, pace and what is left, also before anything was read and beyond an end that moved."""
    assert progress(250, 1_000, 50_000, 2.0) == "table refilled to 25%, 50,000 vectors, 25,000 a second, 6 s left"
    assert progress(0, 1_000, 0, 2.0) == "table refilled to 0%, 0 vectors, 0 a second, nothing read yet"
    assert progress(1_100, 1_000, 9, 1.0).startswith("table refilled to 100%")


@contextmanager
def lane_of(settings: Settings, topics: Topics, metrics: Metrics) -> Iterator[Lane]:
    """The lane of the first partition, working; what is fatal to it fails the test."""
    fatal: list[ManyrayError] = []
    lane = Lane(Shared(settings, topics, metrics, index_cache(), fatal.append), 0)
    try:
        lane.prepare()
        lane.start()
        yield lane
    finally:
        lane.stop()
    assert fatal == []


def put(lane: Lane, value: bytes, offset: int, *, is_vectors: bool) -> threading.Event:
    """Hand a record to a lane; the event is set when it is done."""
    done = threading.Event()
    lane.put(Record(value, offset, is_vectors, done.set))
    return done


def lookup(topics: Topics, numbers: range, sequence: int = 1) -> bytes:
    """A chunk of posts whose contents have those vectors."""
    builder, source = ChunkBuilder(), ("posts", 0)
    for number in numbers:
        builder.add_post(str(number), builder.add_content(key(number), str(number).encode()), source, number, 0)
    sources = [Source(topic="posts", partition=0, epoch_ms=1, sequence=sequence)]
    return builder.build(topics.version, sources).SerializeToString()


def test_a_lane_passes_over_nothing_new_below_its_checkpoint(small: Settings, topics: Topics) -> None:
    """What it did comes again and costs nothing; what is new there lies in a topic that was made anew under it."""
    fatal: list[ManyrayError] = []
    metrics = Metrics.create()
    lane = Lane(Shared(small, topics, metrics, index_cache(), fatal.append), 0)
    try:
        lane.prepare()
        lane.start()
        for offset in (10, 3):
            done = put(lane, lookup(topics, range(5)), offset, is_vectors=False)
            wait_until(done.is_set, "it is done")
        assert (metrics.dedup_posts._value.get(), fatal) == (5, [])
        put(lane, lookup(topics, range(5), sequence=2), 4, is_vectors=False)
        wait_until(lambda: fatal, "it stops")
        assert f"{topics.lookups}/0 offset 4 is new, though the checkpoint is at 11" in str(fatal[0])
    finally:
        lane.stop()


def send_lookups(settings: Settings, topics: Topics, count: int) -> list[bytes]:
    """So many chunks into the first partition of `lookups`, in one transaction, whose marker lies behind them then."""
    producer = clients.producer(settings, f"test{clock.random_id()}")
    producer.init_transactions(WAIT_S)
    producer.begin_transaction()
    chunks = [lookup(topics, range(number, number + 1), number + 1) for number in range(count)]
    for chunk in chunks:
        producer.produce(topics.lookups, chunk, partition=0)
    with closing(clients.reader(settings)) as reader:
        _, end = clients.watermarks(reader, topics.lookups, 0)
        producer.commit_transaction(WAIT_S)
        wait_until(lambda: clients.watermarks(reader, topics.lookups, 0)[1] > end + count, "the marker is there")
    return chunks


def test_a_lane_stops_where_retention_removed_what_nobody_read(small: Settings, topics: Topics) -> None:
    """Those posts are seen by nobody: that is said and not passed over, unless the user accepts it."""
    send_lookups(small, topics, 3)
    remove(small, topics.lookups, 2)
    with (
        pytest.raises(Fatal, match=r"lookups\S+/0 no longer holds offset 0, .*set accept_gaps"),
        lane_of(small, topics, Metrics.create()),
    ):
        pass
    with lane_of(small.model_copy(update={"accept_gaps": True}), topics, Metrics.create()):
        pass


def test_a_lane_stops_where_it_is_overtaken_by_retention(small: Settings, topics: Topics) -> None:
    """Faust's client goes on at the oldest record without a word; its numbers may be of a line that has no gap."""
    count, fatal = GAP_MIN + 50, list[ManyrayError]()
    lane = Lane(Shared(small, topics, Metrics.create(), index_cache(), fatal.append), 0)
    try:
        lane.prepare()
        lane.start()
        chunks = send_lookups(small, topics, count)
        put(lane, chunks[0], GAP_MIN - 1, is_vectors=False)  # so far there may be none: transactions may have ended
        wait_until(lambda: lane.lookups_offset == GAP_MIN, "it is done")
        remove(small, topics.lookups, count)
        put(lane, chunks[1], 2 * GAP_MIN, is_vectors=False)
        wait_until(lambda: fatal, "it stops")
        assert f"{topics.lookups}/0 no longer holds offset {GAP_MIN}, the next to be read" in str(fatal[0])
    finally:
        lane.stop()


def test_an_idle_lane_remembers_the_end(small: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind its last record lies a marker, which retention removes with it: no record is missing then."""
    monkeypatch.setattr("streams.lane.END_AFTER_S", 0.05)
    looks, first_from = list[object](), clients.first_from
    monkeypatch.setattr(
        "streams.lane.clients.first_from", lambda *asked, **how: looks.append(asked) or first_from(*asked, **how)
    )
    metrics = Metrics.create()
    with lane_of(small, topics, metrics) as lane:
        chunks = send_lookups(small, topics, 2)
        wait_until(put(lane, chunks[0], 0, is_vectors=False).is_set, "it is done")
        seen = len(looks)
        wait_until(lambda: len(looks) > seen + 2, "it has looked, while a record is on its way")
        assert lane.lookups_offset == 1
        wait_until(put(lane, chunks[1], 1, is_vectors=False).is_set, "it is done")
        wait_until(lambda: lane.lookups_offset == 3, "it is at the end")
    remove(small, topics.lookups, 3)
    with lane_of(small, topics, metrics) as lane:
        assert lane.lookups_offset == 3


def test_an_idle_lane_stops_where_retention_removed_what_it_never_saw(
    small: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end behind records that are gone is not committed as if there had been none."""
    monkeypatch.setattr("streams.lane.END_AFTER_S", 0.05)
    fatal = list[ManyrayError]()
    lane = Lane(Shared(small, topics, Metrics.create(), index_cache(), fatal.append), 0)
    try:
        lane.prepare()
        send_lookups(small, topics, 2)
        remove(small, topics.lookups, 3)
        lane.start()
        wait_until(lambda: fatal, "it stops")
        assert f"{topics.lookups}/0 no longer holds offset 0, the next to be read" in str(fatal[0])
        assert lane.lookups_offset == 0
    finally:
        lane.stop()


def test_an_idle_lane_looks_again(small: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end moves without a record where a transaction is aborted, and vectors that come do not put it off."""
    monkeypatch.setattr("streams.lane.END_AFTER_S", 0.05)
    monkeypatch.setattr("streams.lane.END_AGAIN_S", 0.05)
    number = iter(range(1_000_000))
    with lane_of(small, topics, Metrics.create()) as lane:

        def learn() -> None:
            put(lane, record_of(topics.version, 0), next(number), is_vectors=True)

        for end in (3, 6):
            write(small, topics.lookups, [([b"aborted", b"too"], False)])
            wait_until(lambda end=end: lane.lookups_offset == end, f"it is at {end}", learn)


def test_a_lane_that_is_stopped_remembers_the_end(small: Settings, topics: Topics) -> None:
    """However soon after its last chunk: a stop may outlast what retention keeps."""
    with lane_of(small, topics, Metrics.create()) as lane:
        (chunk,) = send_lookups(small, topics, 1)
        wait_until(put(lane, chunk, 0, is_vectors=False).is_set, "it is done")
        lane.stop(is_last=True)
    remove(small, topics.lookups, 2)
    with lane_of(small, topics, Metrics.create()) as lane:
        assert lane.lookups_offset == 2


def test_a_lane_refills_a_table_that_is_found_damaged_at_work(small: Settings, topics: Topics, monkeypatch) -> None:
    """Values are checked when they are read: the table is set aside and refilled, and then the posts are hits.

    The watchdog does not count its partition meanwhile, and Faust is told all the same where it is.
    """
    publish(small, topics, 100)
    with lane_of(small, topics, Metrics.create()):
        pass
    for blob in folder_of(small, topics, 0).rglob("*.blob"):
        blob.write_bytes(DAMAGES["cut to half"](blob.read_bytes()))
    metrics = Metrics.create()
    with lane_of(small, topics, metrics) as lane:
        lanes, counted = Lanes(lane._shared), []
        lanes._lanes[0] = lane
        monkeypatch.setattr(
            "streams.refill.reach", lambda _: counted.append((len(lanes.processed()), len(lanes.positions())))
        )
        assert metrics.table_corrupt._value.get() == 0
        done = put(lane, lookup(topics, range(500)), 0, is_vectors=False)
        wait_until(done.is_set, "the look-ups are done")
        assert (metrics.dedup_hits._value.get(), metrics.dedup_posts._value.get()) == (500, 500)
        assert (metrics.table_corrupt._value.get(), lane.vectors_offset) == (1, 100)
        assert counted == [(0, 2)]
        assert len(lanes.processed()) == 2
    assert len(list(folder_of(small, topics, 0).parent.glob("0.corrupt-*"))) == 1


def test_a_lane_refills_a_table_that_is_deleted_while_it_learns(small: Settings, topics: Topics) -> None:
    """The vectors in hand fail to be written: the table begins anew, and has all of them in the end."""
    count = 100
    metrics = Metrics.create()
    with lane_of(small, topics, metrics) as lane:
        publish(small, topics, count)
        shutil.rmtree(folder_of(small, topics, 0))
        events = [put(lane, record_of(topics.version, number), number, is_vectors=True) for number in range(count)]
        wait_until(events[-1].is_set, "all is learned")
        assert metrics.table_corrupt._value.get() == 1
        done = put(lane, lookup(topics, range(count * VECTORS_A_RECORD)), 0, is_vectors=False)
        wait_until(done.is_set, "the look-ups are done")
        assert metrics.dedup_hits._value.get() == count * VECTORS_A_RECORD


def test_a_table_that_is_held_is_left_to_its_holder(small: Settings, topics: Topics, caplog) -> None:
    """A stopped process may hold a table for long: the lane says so, and goes on with a spare one, until it is opened
    again when nobody holds the first.
    """
    folder = folder_of(small, topics, 0)
    spare = spare_of(folder)
    code = (
        "import sys; from pathlib import Path; from streams.rocks_table import RocksTable\n"
        f"table = RocksTable(Path({str(folder)!r}), {2**24}); print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        lane = Lane(Shared(small, topics, Metrics.create(), index_cache(), print), 0)
        lane.prepare()
        other.kill()
    lane.stop()
    assert "held by another process" in caplog.text
    assert spare.is_dir()
    lane = Lane(Shared(small, topics, Metrics.create(), index_cache(), print), 0)
    lane.prepare()
    lane.stop()
    assert not spare.exists()


def test_look_ups_do_not_wait_longer_than_they_may(settings: Settings) -> None:
    """With no time to refill, dedup serves at once and misses; every post comes once, and the table is whole in the
    end through the agent.
    """
    create_topics(settings, version_of(settings))
    count = 2_000

    def some(prefix: str) -> list[bytes]:
        return [post(f"{prefix}{number}", f"text {number}") for number in range(count)]

    with Pipeline(settings) as pipeline:
        pipeline.wait_ready(WAIT_S)
        send(settings, some("a"))
        await_embeddings(settings, count)
    shutil.rmtree(settings.data_dir / "tables")
    with Pipeline(settings.model_copy(update={"restore_wait_s": 0.0})) as pipeline:
        pipeline.wait_ready(WAIT_S)
        send(settings, some("b"))
        computed = await_embeddings(settings, 2 * count).computed
        wait_until(lambda: sum(values(pipeline, "dedup", "manyray_table_learned_total")) >= computed, "it is whole")
        assert sum(values(pipeline, "dedup", "manyray_table_refilled_total")) == 0
        before = sum(values(pipeline, "dedup", "manyray_dedup_hits_total"))
        send(settings, some("c"))
        await_embeddings(settings, 3 * count)
        assert sum(values(pipeline, "dedup", "manyray_dedup_hits_total")) - before == count
    seen = read_embeddings(settings)
    assert seen.ids.total() == len(seen.ids) == 3 * count
