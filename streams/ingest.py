"""Ingest: posts in, chunks out. Decode, validate, normalise, hash, pack; what is bad goes to `rejected`.

Its chunks are for all versions of the ray: it knows none. Stateless: the numbers of the chunks travel with the offsets
it commits, all in one transaction with them.
"""

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from confluent_kafka import TopicPartition

from schemas.chunk import ChunkBuilder, Place
from schemas.content import hasher
from schemas.errors import Reject
from schemas.internal_pb2 import Source
from schemas.post import decode_deletion, decode_post
from streams import clock
from streams.attempts import keep_going, with_retries
from streams.failpoints import reach
from streams.group import Member
from streams.line import Line
from streams.metrics import Metrics
from streams.packing import Packer
from streams.rejected import Original, PostRecord, send_rejected
from streams.role import begin
from streams.settings import Settings
from streams.topics import Topics
from streams.transactions import StageProducer
from streams.watchdog import watch

_log = logging.getLogger("manyray.ingest")

LONG_S = 5.0
"""For packing a batch: some texts take NFC long, and a batch may be of nothing else. Shorter is no reason to let a
partition be that stands still.
"""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A bad record and why it is bad."""

    message: PostRecord
    cause: Reject
    job: str
    """The replay that read it, if one did."""


@dataclass(slots=True)
class Batch:
    """What became of the records of one transaction."""

    chunks: list[tuple[int, ChunkBuilder]]
    rejected: list[Rejected]
    deletions: int
    next_offsets: dict[Place, int]


def sort_posts(messages: Sequence[PostRecord], packers: Mapping[str, Packer], text_bytes_max: int) -> Batch:
    """Decode records; good posts, and deletions of posts, go to the chunks of their topic's packer, bad ones are listed
    with their reason.
    """
    rejected: list[Rejected] = []
    next_offsets: dict[Place, int] = {}
    deletions = 0
    for message in messages:
        source = (message.topic() or "", message.partition() or 0)
        offset = message.offset() or 0
        next_offsets[source] = offset + 1
        packer, value = packers[source[0]], message.value()
        try:
            if value is None:
                packer.delete(decode_deletion(message.key()), source, offset)
                deletions += 1
            else:
                packer.add(decode_post(value, text_bytes_max), source, offset, message.timestamp()[1])
        except Reject as cause:
            rejected.append(Rejected(message, cause, packer.job))
    chunks = [chunk for packer in dict.fromkeys(packers.values()) for chunk in packer.take()]
    return Batch(chunks, rejected, deletions, next_offsets)


def send_batch(
    batch: Batch,
    lines: Mapping[Place, Line],
    producer: StageProducer,
    topics: Topics,
    metrics: Metrics,
    *,
    version: str = "",
) -> dict[Place, Line]:
    """Produce the chunks of a batch, numbered by the lines of its sources, and what is bad; the lines as they are then.

    They hold once the caller has committed. The chunks are for every version of the ray, or for one alone.
    """
    sent = {source: [0] * len(line.sequences) for source, line in lines.items()}
    for partition, builder in batch.chunks:
        sources: list[Source] = []
        for source in builder.sources:
            sent[source][partition] += 1
            line = lines[source]
            number = line.sequences[partition] + sent[source][partition]
            sources.append(
                Source(topic=source[0], partition=source[1], epoch_ms=line.epoch_ms, sequence=number, job=builder.job)
            )
        value = builder.build(version, sources).SerializeToString()
        producer.produce(topics.lookups, value, partition=partition)
        metrics.chunk_posts.observe(builder.posts)
        metrics.chunk_bytes.observe(len(value))
    for bad in batch.rejected:
        send_rejected(producer, topics, Original.of(bad.message, bad.job), bad.cause)
    return {source: line.after(sent[source]) for source, line in lines.items()}


@dataclass(slots=True)
class Ingest:
    """One ingest process: a member of the group, and a producer."""

    settings: Settings
    topics: Topics
    metrics: Metrics
    member: Member
    producer: StageProducer
    packers: dict[str, Packer]
    """By topic: one for each lane."""
    lines: dict[Place, Line] = field(default_factory=dict[Place, Line])
    _packing_s: float = math.inf
    """Since when a batch is packed."""

    @classmethod
    def join(cls, settings: Settings, topics: Topics, metrics: Metrics, stop: threading.Event) -> "Ingest":
        """Open the producer, then become a member.

        Raises:
            Retry: `stop` was set before the brokers answered.
            Fatal: they did not answer.
        """
        producer = StageProducer.create(
            settings, f"manyray.ingest.{settings.ray}.{clock.random_id()}", metrics, stop, shared_id=False
        )
        with_retries(producer.open, stop)
        # Nothing is under way between two steps, so partitions can go at any `read`; only the lines go with them.
        lines: dict[Place, Line] = {}
        group = f"manyray.ingest.{settings.ray}"
        posts = list(topics.all_posts)
        member = Member.join(settings, group, posts, metrics, on_revoke=lines.clear, on_lost=lines.clear)
        hash_of = hasher(settings.salt.get_secret_value())
        live, backfill = (
            Packer(hash_of, settings.partitions, settings.chunk_posts_max, is_backfill=is_backfill)
            for is_backfill in (False, True)
        )
        packers = dict.fromkeys(topics.posts, live) | dict.fromkeys(topics.backfill_posts, backfill)
        return cls(settings, topics, metrics, member, producer, packers, lines)

    def step(self) -> bool:
        """Read what has arrived within the commit interval, pass it on in one transaction, and say whether any came.

        Raises:
            Retry: it was not committed, or that is unknown: `recover`.
            Fatal: this process has to end.
        """
        settings = self.settings
        messages = self.member.read(settings.transaction_posts_max, settings.commit_interval_ms / 1000)
        self.member.report_lag()
        if messages:
            self._packing_s = clock.monotonic_s()
            batch = sort_posts(messages, self.packers, settings.text_bytes_max)
            self._packing_s = math.inf
            self.publish(batch)
        self.member.commit_ends(self.producer)
        return bool(messages)

    def beat(self) -> int:
        """A number that changes while one batch is packed for long; any thread may ask."""
        return (
            sum(packer.contents for packer in self.packers.values())
            if clock.monotonic_s() - self._packing_s > LONG_S
            else 0
        )

    def publish(self, batch: Batch) -> None:
        """Write a batch, the numbers of its chunks and its offsets in one transaction."""
        lines = {source: self._line(source) for source in batch.next_offsets}
        self.producer.begin()
        lines = send_batch(batch, lines, self.producer, self.topics, self.metrics)
        reach("ingest.sent")
        self.producer.commit(
            [
                TopicPartition(*source, offset, metadata=str(lines[source]))
                for source, offset in batch.next_offsets.items()
            ],
            self.member.consumer,
        )
        # Only what is committed may be remembered: after a failure the lines are read back from Kafka.
        self.lines.update(lines)
        self.member.processed(batch.next_offsets)
        self.metrics.ingest_posts.inc(sum(builder.posts for _, builder in batch.chunks))
        self.metrics.ingest_deletions.inc(batch.deletions)
        for bad in batch.rejected:
            self.metrics.ingest_rejected.labels(bad.cause.reason).inc()

    def recover(self) -> None:
        """After a Retry: a new producer ends the transaction, then reading goes on from what was committed."""
        self.member.waits_for = "it goes back to what is committed"
        self.lines.clear()
        self.producer.open()
        self.member.rewind()

    def close(self) -> None:
        """Leave the group; nothing is under way."""
        self.member.close()
        self.producer.close()

    def _line(self, source: Place) -> Line:
        line = self.lines.get(source)
        if line is None:
            partitions = self.settings.partitions
            line = Line.parse(self.member.committed([source])[0].metadata, partitions)
            line = line or Line.begin(clock.now_ms(), partitions)
        return line


def run(settings: Settings, stop: threading.Event) -> None:
    """Run one ingest process until `stop` is set.

    Raises:
        Fatal: it cannot start, or cannot go on.
    """
    metrics = Metrics.create()
    health = begin(settings, "ingest", stop, metrics.registry)
    topics = Topics.of(settings, "")
    ingest = Ingest.join(settings, topics, metrics, stop)
    member = ingest.member
    health.waits_for = lambda: member.waits_for
    watch(settings, health, member.positions.copy, beat=ingest.beat)
    try:
        keep_going(ingest.step, ingest.recover, stop)
        member.commit_last_ends(ingest.producer)
    finally:
        stop.set()  # after a failure too: what is left has the time of a stop
        ingest.close()
