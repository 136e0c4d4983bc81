"""How many contents of a sample the tables hold: asked of dedup itself, by chunks whose hits are only counted."""

import threading
from collections.abc import Collection
from contextlib import closing

from schemas.content import partition_of
from schemas.internal_pb2 import Chunk, Source
from streams import clock
from streams.attempts import with_retries
from streams.backlog import Backlog
from streams.line import Line
from streams.metrics import Metrics
from streams.settings import Settings
from streams.topics import Topics
from streams.transactions import StageProducer

ANSWER_S = 15.0
"""For dedup to answer: where none runs, nothing is known."""


def count_hits(settings: Settings, topics: Topics, hashes: Collection[bytes]) -> int | None:
    """Of how many of these distinct contents, by their hashes, the tables hold the vector; None where no dedup answers.

    Raises:
        Retry: the brokers did not answer in time.
    """
    name = f"probe-{clock.random_id()}"
    by_partition: dict[int, list[bytes]] = {}
    for each in hashes:
        by_partition.setdefault(partition_of(each, settings.partitions), []).append(each)
    stop = threading.Event()
    begun = Line.begin(clock.now_ms(), settings.partitions)
    producer = StageProducer.create(
        settings, f"manyray.replay.{topics.ray}.{name}", Metrics.create(), stop, shared_id=False
    )
    with closing(producer), closing(Backlog(settings, topics, name)) as backlog:
        with_retries(producer.open, stop)
        sent = {(name, 0): begun.after([int(at in by_partition) for at in range(settings.partitions)])}
        producer.begin()
        for partition, its in by_partition.items():
            chunk = _chunk(topics, its)
            chunk.sources.append(Source(topic=name, partition=0, epoch_ms=begun.epoch_ms, sequence=1, job=name))
            producer.produce(topics.lookups, chunk.SerializeToString(), partition=partition)
        producer.commit()
        deadline_s = clock.monotonic_s() + ANSWER_S
        while not (is_answered := backlog.is_looked_up(sent)) and clock.monotonic_s() < deadline_s:
            backlog.take(0.1)
        hits = backlog.tally()[1] if is_answered else None
        producer.begin()
        for partition in by_partition:
            ended = Source(topic=name, partition=0, job=name, ended=True)
            chunk = Chunk(version=topics.version, sources=[ended], backfill=True)
            producer.produce(topics.lookups, chunk.SerializeToString(), partition=partition)
        producer.commit()
    return hits


def _chunk(topics: Topics, hashes: list[bytes]) -> Chunk:
    nothing = [0] * len(hashes)
    return Chunk(
        version=topics.version,
        fingerprints=b"".join(hashes),
        texts=[b""] * len(hashes),
        ids=[""] * len(hashes),
        contents=range(len(hashes)),
        post_sources=nothing,
        offsets=nothing,
        posted_ms=nothing,
        backfill=True,
        probe=True,
    )
