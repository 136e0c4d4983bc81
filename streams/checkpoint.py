"""The checkpoint of a partition: read by its new owner before anything else, written with the outputs it speaks of."""

import logging
from contextlib import closing
from dataclasses import dataclass, field, replace

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from google.protobuf.message import DecodeError

from schemas.errors import Retry
from schemas.internal_pb2 import Checkpoint, Chunk, Source, Standing
from streams import clients, clock
from streams.line import follow, is_repeat
from streams.settings import Settings

_log = logging.getLogger("manyray.checkpoint")

KEY = b"dedup"
"""Of every checkpoint: with one key, compaction keeps the last."""
READ_TIMEOUT_S = 30.0
_TAIL_RECORDS = 64


LineKey = tuple[str, int, str]
"""What names a line of chunks: topic, partition, and the replay that reads them, empty for posts as they come."""


def line_of(source: Source) -> LineKey:
    """The line that a source's number is of."""
    return source.topic, source.partition, source.job


@dataclass(frozen=True, slots=True)
class Progress:
    """How far dedup got in a partition: the next offset of `lookups`, the last of each line of chunks, and what its
    version is to the ray there; None where nothing was told of that yet.

    A line of a replay is kept until the replay ends, with how many posts it had in this partition, and how many hits.
    """

    lookups_offset: int = 0
    sources: dict[LineKey, Source] = field(default_factory=dict[LineKey, Source])
    standing: Standing | None = None

    def after(
        self, chunk: Chunk, offset: int, *, hits: int = 0, accept_gaps: bool = False, repeats: bool = False
    ) -> "Progress":
        """The progress once the chunk at `offset`, with so many hits, is done; `repeats` says whether numbers may come
        again.

        Raises:
            Fatal: chunks before it are missing, unless `accept_gaps`.
        """
        sources = dict(self.sources)
        for number, source in enumerate(chunk.sources):
            line = line_of(source)
            if source.ended:
                sources.pop(line, None)
                continue
            seen = sources.get(line)
            if repeats and is_repeat(seen, source):
                continue
            if not accept_gaps:
                follow(seen, source)
            sources[line] = _tallied(source, seen, chunk, hits if number == 0 else None) if source.job else source
        return replace(self, lookups_offset=offset + 1, sources=sources)

    def told(self, chunk: Chunk, version: str) -> "Progress":
        """The progress with what the chunk tells of a version, if it does."""
        told = next((standing for standing in chunk.standings if standing.version == version), None)
        return self if told is None else replace(self, standing=told)

    def has(self, chunk: Chunk) -> bool:
        """Whether the chunk is done, by its numbers; of a replay that has ended they are forgotten."""
        return all(
            (source.job and line_of(source) not in self.sources) or is_repeat(self.sources.get(line_of(source)), source)
            for source in chunk.sources
        )

    def to_bytes(self) -> bytes:
        """The value of the checkpoint record."""
        message = Checkpoint(lookups_offset=self.lookups_offset, sources=self.sources.values(), standing=self.standing)
        return message.SerializeToString()

    @classmethod
    def from_bytes(cls, value: bytes) -> "Progress":
        """What `to_bytes` wrote."""
        message = Checkpoint.FromString(value)
        standing = message.standing if message.HasField("standing") else None
        return cls(message.lookups_offset, {line_of(source): source for source in message.sources}, standing)


def _tallied(source: Source, seen: Source | None, chunk: Chunk, hits: int | None) -> Source:
    """A line's last number with its sums; of a chunk of several lines they all go to the first, which gets `hits`."""
    posts, before = (0, 0) if hits is None else (len(chunk.ids), hits)
    tallied = Source()
    tallied.CopyFrom(source)
    tallied.posts = (seen.posts if seen else 0) + posts
    tallied.hits = (seen.hits if seen else 0) + before
    return tallied


def read_progress(settings: Settings, topic: str, partition: int) -> Progress:
    """Read the last checkpoint; call it after fencing, so that no other can follow.

    The end is taken as a `read_uncommitted` reader sees it, and read up to as `read_committed`: otherwise a
    transaction that is still being ended would hide the checkpoint it holds.

    Raises:
        Retry: the brokers did not answer in time.
    """
    try:
        with closing(clients.reader(settings, committed=False)) as uncommitted:
            low, end = clients.watermarks(uncommitted, topic, partition)
        with closing(clients.reader(settings)) as consumer:
            tail = _TAIL_RECORDS
            while True:
                start = max(low, end - tail)
                progress = _last_progress(consumer, TopicPartition(topic, partition, start), end)
                if progress is not None or start == low:
                    return progress or Progress()
                tail *= 16
    except KafkaException as error:
        raise Retry(f"checkpoint of {topic}/{partition}: {error.args[0].str()}") from None


def _last_progress(consumer: Consumer, start: TopicPartition, end: int) -> Progress | None:
    """The last checkpoint committed from `start` on, read until nothing before `end` can follow.

    What is none, which only another program can have written, is left out.
    """
    if start.offset >= end:
        return None
    consumer.assign([start])
    deadline_s = clock.monotonic_s() + READ_TIMEOUT_S
    found = None
    while clock.monotonic_s() < deadline_s:
        message = consumer.poll(1.0)
        if message is None:
            continue
        error = message.error()
        if error is None:
            if message.key() == KEY:
                found = parse_checkpoint(message) or found
        elif error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        elif (message.offset() or 0) >= end:
            return found
    raise Retry(f"checkpoint of {start.topic}/{start.partition}: its end was not reached in {READ_TIMEOUT_S:.0f} s")


def parse_checkpoint(message: Message) -> Progress | None:
    """The progress that a record of `checkpoints` holds; None, and a warning, if it holds none."""
    try:
        return Progress.from_bytes(message.value() or b"")
    except DecodeError:
        place = (message.topic(), message.partition(), message.offset())
        _log.warning("%s/%s offset %s is no checkpoint: left out", *place)
        return None
