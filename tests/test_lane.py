"""Where a lane stands in `lookups`, on real Kafka: nothing is passed over that nobody read, and nothing done twice."""

from contextlib import closing

import pytest

from schemas.errors import Fatal, ManyrayError
from streams import clients, clock
from streams.lane import GAP_MIN, Lane, Shared
from streams.metrics import Metrics
from streams.rocks_table import index_cache
from streams.settings import Settings
from streams.topics import Topics
from tests.lanes import DIMS, lane_of, lookup, put, record_of
from tests.oracle import remove
from tests.test_transport import write
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker


def test_a_lane_passes_over_nothing_new_below_its_checkpoint(settings: Settings, topics: Topics) -> None:
    """What it did comes again and costs nothing; what is new there lies in a topic that was made anew under it."""
    fatal, metrics = list[ManyrayError](), Metrics.create()
    with lane_of(settings, topics, metrics, fatal) as lane:
        for offset in (10, 3):
            done = put(lane, lookup(topics, range(5)), offset, is_vectors=False)
            wait_until(done.is_set, "it is done")
        assert (metrics.dedup_posts._value.get(), fatal) == (5, [])
        put(lane, lookup(topics, range(5), sequence=2), 4, is_vectors=False)
        wait_until(lambda: fatal, "it stops")
        assert f"{topics.lookups}/0 offset 4 is new, though the checkpoint is at 11" in str(fatal[0])


@pytest.mark.parametrize(("vectors", "transactions"), [(4, 4), (10, 2), (20, 1)])
def test_large_vectors_end_a_transaction_early(
    settings: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch, vectors: int, transactions: int
) -> None:
    """Four records at once, of five hits each, are one transaction, unless their vectors are too large for one."""
    monkeypatch.setattr("streams.lane.VECTOR_BYTES_MAX", vectors * 4 * DIMS)
    four = settings.model_copy(
        update={"transaction_posts_max": 2_000, "chunk_posts_max": 500, "commit_interval_ms": 5_000}
    )
    metrics = Metrics.create()
    with lane_of(four, topics, metrics) as lane:
        wait_until(put(lane, record_of(topics.version, 0), 0, is_vectors=True).is_set, "vectors are learned")
        before = end_of(settings, topics.checkpoints)
        done = [put(lane, lookup(topics, range(5), number + 1), number, is_vectors=False) for number in range(4)]
        wait_until(lambda: all(one.is_set() for one in done), "all are done")
        wait_until(lambda: end_of(settings, topics.checkpoints) >= before + 2 * transactions, "markers are there")
        assert end_of(settings, topics.checkpoints) == before + 2 * transactions  # a checkpoint and a marker each
        assert (metrics.dedup_hits._value.get(), lane.lookups_offset) == (20, 4)


def end_of(settings: Settings, topic: str) -> int:
    """The end of the first partition."""
    with closing(clients.reader(settings)) as reader:
        return clients.watermarks(reader, topic, 0)[1]


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


def test_a_lane_stops_where_retention_removed_what_nobody_read(settings: Settings, topics: Topics) -> None:
    """Those posts are seen by nobody: that is said and not passed over, unless the user accepts it."""
    send_lookups(settings, topics, 3)
    remove(settings, topics.lookups, 2)
    with (
        pytest.raises(Fatal, match=r"lookups\S+/0 no longer holds offset 0, .*set accept_gaps"),
        lane_of(settings, topics, Metrics.create()),
    ):
        pass
    with lane_of(settings.model_copy(update={"accept_gaps": True}), topics, Metrics.create()):
        pass


def test_a_lane_stops_where_it_is_overtaken_by_retention(settings: Settings, topics: Topics) -> None:
    """Faust's client goes on at the oldest record without a word; its numbers may be of a line that has no gap."""
    count, fatal = GAP_MIN + 50, list[ManyrayError]()
    with lane_of(settings, topics, Metrics.create(), fatal) as lane:
        chunks = send_lookups(settings, topics, count)
        put(lane, chunks[0], GAP_MIN - 1, is_vectors=False)  # so far there may be none: transactions may have ended
        wait_until(lambda: lane.lookups_offset == GAP_MIN, "it is done")
        remove(settings, topics.lookups, count)
        put(lane, chunks[1], 2 * GAP_MIN, is_vectors=False)
        wait_until(lambda: fatal, "it stops")
        assert f"{topics.lookups}/0 no longer holds offset {GAP_MIN}, the next to be read" in str(fatal[0])


def test_an_idle_lane_remembers_the_end(settings: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind its last record lies a marker, which retention removes with it: no record is missing then."""
    monkeypatch.setattr("streams.lane.END_AFTER_S", 0.05)
    looks, first_from = list[object](), clients.first_from
    monkeypatch.setattr(
        "streams.lane.clients.first_from", lambda *asked, **how: looks.append(asked) or first_from(*asked, **how)
    )
    metrics = Metrics.create()
    with lane_of(settings, topics, metrics) as lane:
        chunks = send_lookups(settings, topics, 2)
        wait_until(put(lane, chunks[0], 0, is_vectors=False).is_set, "it is done")
        seen = len(looks)
        wait_until(lambda: len(looks) > seen + 2, "it has looked, while a record is on its way")
        assert lane.lookups_offset == 1
        wait_until(put(lane, chunks[1], 1, is_vectors=False).is_set, "it is done")
        wait_until(lambda: lane.lookups_offset == 3, "it is at the end")
    remove(settings, topics.lookups, 3)
    with lane_of(settings, topics, metrics) as lane:
        assert lane.lookups_offset == 3


def test_an_idle_lane_stops_where_retention_removed_what_it_never_saw(
    settings: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end behind records that are gone is not committed as if there had been none."""
    monkeypatch.setattr("streams.lane.END_AFTER_S", 0.05)
    fatal = list[ManyrayError]()
    lane = Lane(Shared(settings, topics, Metrics.create(), index_cache(), fatal.append), 0)
    try:
        lane.prepare()
        send_lookups(settings, topics, 2)
        remove(settings, topics.lookups, 3)
        lane.start()
        wait_until(lambda: fatal, "it stops")
        assert f"{topics.lookups}/0 no longer holds offset 0, the next to be read" in str(fatal[0])
        assert lane.lookups_offset == 0
    finally:
        lane.stop()


def test_an_idle_lane_looks_again(settings: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end moves without a record where a transaction is aborted, and vectors that come do not put it off."""
    monkeypatch.setattr("streams.lane.END_AFTER_S", 0.05)
    monkeypatch.setattr("streams.lane.END_AGAIN_S", 0.05)
    number = iter(range(1_000_000))
    with lane_of(settings, topics, Metrics.create()) as lane:

        def learn() -> None:
            put(lane, record_of(topics.version, 0), next(number), is_vectors=True)

        for end in (3, 6):
            write(settings, topics.lookups, [([b"aborted", b"too"], False)])
            wait_until(lambda end=end: lane.lookups_offset == end, f"it is at {end}", learn)


def test_a_lane_that_is_stopped_remembers_the_end(settings: Settings, topics: Topics) -> None:
    """However soon after its last chunk: a stop may outlast what retention keeps."""
    with lane_of(settings, topics, Metrics.create()) as lane:
        (chunk,) = send_lookups(settings, topics, 1)
        wait_until(put(lane, chunk, 0, is_vectors=False).is_set, "it is done")
        lane.stop(is_last=True)
    remove(settings, topics.lookups, 2)
    with lane_of(settings, topics, Metrics.create()) as lane:
        assert lane.lookups_offset == 2
