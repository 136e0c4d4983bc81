"""Restoring a table on real Kafka: whatever became of it or of `vectors`, the lane serves and nothing is lost."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import Message, TopicPartition

from streams import clients
from streams.control import create_ray
from streams.dedup_app import Lanes
from streams.lane import Lane, Shared
from streams.metrics import Metrics
from streams.refill import progress, read_batch, refill
from streams.rocks_table import index_cache
from streams.settings import Settings
from streams.table import MemoryTable
from streams.table_folder import folder_of, spare_of
from streams.topics import Topics, create_topics
from streams.up import Pipeline
from streams.version import version_of
from tests.lanes import VECTORS_A_RECORD, lane_of, lookup, put, record_of, vector
from tests.oracle import await_embeddings, post, read_embeddings, remove, send
from tests.tables import DAMAGES, key
from tests.test_pipeline import values
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker


@pytest.fixture
def small(settings: Settings) -> Settings:
    """Settings whose tables are small and whole on disk, so that they are soon in files and read from them."""
    return settings.model_copy(update={"table_disk_mib": 64, "table_ram_mib": 0})


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
    create_ray(settings)
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
