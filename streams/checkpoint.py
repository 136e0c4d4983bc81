"""The checkpoint of a partition: read by its new owner before anything else, written with the outputs it speaks of."""

import logging
from contextlib import closing
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from google.protobuf.message import DecodeError

from schemas.chunk import Place
from schemas.errors import Retry
from schemas.internal_pb2 import Checkpoint, Chunk, Source
from streams import clients, clock
from streams.line import follow, is_repeat
from streams.settings import Settings

_log = logging.getLogger("manyray.checkpoint")

KEY = b"dedup"
"""Of every checkpoint: with one key, compaction keeps the last."""
READ_TIMEOUT_S = 30.0
_TAIL_RECORDS = 64


@dataclass(frozen=True, slots=True)
class Progress:
    """How far dedup got in a partition: the next offset of `lookups`, and the last of each line of chunks."""

    lookups_offset: int = 0
    sources: dict[Place, Source] = field(default_factory=dict[Place, Source])

    def after(self, chunk: Chunk, offset: int, *, accept_gaps: bool = False, repeats: bool = False) -> "Progress":
        """The progress once the chunk at `offset` is done; `repeats` says whether numbers may come again.

        Raises:
            Fatal: chunks before it are missing, unless `accept_gaps`.
        """
        sources = dict(self.sources)
        for source in chunk.sources:
            place = (source.topic, source.partition)
            seen = sources.get(place)
            if repeats and is_repeat(seen, source):
                continue
            if not accept_gaps:
                follow(seen, source)
            sources[place] = source
        return Progress(offset + 1, sources)

    def has(self, chunk: Chunk) -> bool:
        """Whether the chunk is done, by its numbers."""
        return all(is_repeat(self.sources.get((source.topic, source.partition)), source) for source in chunk.sources)

    def to_bytes(self) -> bytes:
        """The value of the checkpoint record."""
        message = Checkpoint(lookups_offset=self.lookups_offset, sources=self.sources.values())
        return message.SerializeToString()

    @classmethod
    def from_bytes(cls, value: bytes) -> "Progress":
        """What `to_bytes` wrote."""
        message = Checkpoint.FromString(value)
        return cls(message.lookups_offset, {(source.topic, source.partition): source for source in message.sources})


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
                found = _parse(message) or found
        elif error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        elif (message.offset() or 0) >= end:
            return found
    raise Retry(f"checkpoint of {start.topic}/{start.partition}: its end was not reached in {READ_TIMEOUT_S:.0f} s")


def _parse(message: Message) -> Progress | None:
    try:
        return Progress.from_bytes(message.value() or b"")
    except DecodeError:
        place = (message.topic(), message.partition(), message.offset())
        _log.warning("%s/%s offset %s is no checkpoint: left out", *place)
        return None
