"""Refilling a table from `vectors`, its changelog, from the offset that stands beside its data."""

import logging
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from schemas.errors import Retry
from streams import clients, clock
from streams.failpoints import reach
from streams.learned import Learned
from streams.metrics import Metrics
from streams.settings import Settings
from streams.table import Table
from streams.topics import Topics

_log = logging.getLogger("manyray.refill")

_LOG_EVERY_S = 2.0
_RECORDS_AT_ONCE = 32  # a record has up to half a megabyte
_BATCH_WAIT_S = 0.05
_PAUSE_S = 0.5
"""Before brokers are asked again that did not answer."""
_ASK_S = 5.0
"""For one answer."""


class Unread(Exception):
    """The brokers did not give what was asked for."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a read of one partition of `vectors` brought, the offset after it, and whether it ends there."""

    learned: Learned
    offset: int | None
    ended: bool


def read_batch(messages: Sequence[Message], version: str) -> Batch:
    """The batch in a consumer's messages; it ends there if the partition's end is the last of them.

    Raises:
        Unread: one of them is an error.
    """
    learned, offset, ended = Learned(), None, False
    for message in messages:
        error, offset = message.error(), message.offset() or 0
        ended = error is not None
        if error is None:
            learned.take(Learned.of(message.value(), version))
            offset += 1
        elif error.code() != KafkaError._PARTITION_EOF:
            raise Unread(error.str())
    return Batch(learned, offset, ended)


def refill(
    table: Table, settings: Settings, topics: Topics, partition: int, *, metrics: Metrics, stop: threading.Event
) -> bool:
    """Read `vectors` from the table's offset to the end as it is now.

    False if `restore_wait_s` was over, or `stop` set, before the end was reached.

    What is missing then comes through the agent, and look-ups miss meanwhile: they cost compute, not correctness. So
    brokers that do not answer are asked again until the time is over, and end nothing.

    Raises:
        Retry: the table was damaged, and has begun anew.
        Fatal: the table cannot be written.
    """
    deadline_s = clock.monotonic_s() + settings.restore_wait_s
    why = ""
    with metrics.table_restoring.track_inprogress():
        while True:
            try:
                if _read_to_end(table, settings, topics, partition, deadline_s, metrics=metrics, stop=stop):
                    return True
            except Unread as error:
                why = f" ({error})"
                _log.debug("partition %d is not refilled yet: %s", partition, error)
            if clock.monotonic_s() > deadline_s:
                break
            if stop.wait(_PAUSE_S):
                return False
    wait_s = settings.restore_wait_s
    _log.warning(
        "partition %d: table not whole after restore_wait_s = %g s; misses until it is%s", partition, wait_s, why
    )
    return False


def _read_to_end(
    table: Table,
    settings: Settings,
    topics: Topics,
    partition: int,
    deadline_s: float,
    *,
    metrics: Metrics,
    stop: threading.Event,
) -> bool:
    """As `refill`, but raises Unread where the brokers do not answer."""
    topic = topics.vectors
    began_s = logged_s = clock.monotonic_s()
    count = 0
    with closing(clients.reader(settings)) as consumer:
        low, end = _offsets(consumer, topic, partition)
        if not low <= table.offset <= end:  # it was trimmed, or made anew: all that there is, is read
            table.put_many({}, low)
        start = table.offset
        if start >= end:
            return True
        reach("dedup.refilling")
        consumer.assign([TopicPartition(topic, partition, start)])
        while clock.monotonic_s() < deadline_s and not stop.is_set():
            batch = read_batch(consumer.consume(_RECORDS_AT_ONCE, _BATCH_WAIT_S), topics.version)
            if batch.offset is not None:
                batch.learned.put_into(table, batch.offset)
                count += len(batch.learned.vectors)
                metrics.table_refilled.inc(len(batch.learned.vectors))
            if batch.ended and table.offset < end:  # the topic was made anew, and is shorter now
                _, end = _offsets(consumer, topic, partition)
            seconds = clock.monotonic_s() - began_s
            if batch.ended and table.offset >= end:
                if count:
                    _log.info("partition %d: %d vectors refilled in %.1f s", partition, count, seconds)
                return True
            if clock.monotonic_s() - logged_s > _LOG_EVERY_S:
                logged_s = clock.monotonic_s()
                _log.info("partition %d: %s", partition, progress(table.offset - start, end - start, count, seconds))
    return False


def _offsets(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    try:
        return clients.watermarks(consumer, topic, partition, timeout_s=_ASK_S)
    except Retry as error:
        raise Unread(str(error)) from None


def progress(done: int, whole: int, vectors: int, seconds: float) -> str:
    """A refill in words: the share of offsets that is done, vectors so far and a second, seconds left at that pace."""
    share = min(1.0, max(0.0, done / whole)) if whole > 0 else 1.0
    left = f"{seconds * (1 - share) / share:.0f} s left" if share else "nothing read yet"
    return f"table refilled to {share:.0%}, {vectors:,} vectors, {vectors / seconds:,.0f} a second, {left}"
