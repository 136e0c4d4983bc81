"""Refilling a table from `vectors`, its changelog, from the offset that stands beside its data."""

import logging
import threading

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from google.protobuf.message import DecodeError

from schemas.content import split_fingerprints
from schemas.errors import Retry
from schemas.internal_pb2 import Vectors
from streams import clients, clock
from streams.metrics import Metrics
from streams.settings import Settings
from streams.table import Table
from streams.topics import Topics

_log = logging.getLogger("manyray.refill")

_LOG_EVERY_S = 2.0
_RECORDS_AT_ONCE = 16  # a record has up to half a megabyte


def vectors_by_fingerprint(record: bytes | None, version: str) -> dict[bytes, bytes]:
    """What a record of the `vectors` topic holds for a version: empty if it is another version's, or no vectors.

    The table is a cache, so what it cannot learn costs compute only.
    """
    try:
        message = Vectors.FromString(record or b"")
    except DecodeError:
        message = Vectors(version=version)  # of none, which is told below
    if message.version != version:
        return {}
    fingerprints, size, blob = split_fingerprints(message.fingerprints), message.dims * 4, message.vectors
    if not blob or len(blob) != size * len(fingerprints):
        _log.warning("a record of %d bytes in the vectors topic holds no vectors: left out", len(record or b""))
        return {}
    return {fingerprint: blob[index * size : (index + 1) * size] for index, fingerprint in enumerate(fingerprints)}


def refill(
    table: Table, settings: Settings, topics: Topics, partition: int, *, metrics: Metrics, stop: threading.Event
) -> bool:
    """Read `vectors` from the table's offset to the end as it is now.

    False if `restore_wait_s` was over, or `stop` set, before the end was reached.

    What is missing then comes through the agent, and look-ups miss meanwhile: they cost compute, not correctness.

    Raises:
        Retry: the brokers did not answer in time.
        Fatal: the table cannot be written.
    """
    topic, wait_s = topics.vectors, settings.restore_wait_s
    consumer = clients.reader(settings)
    began_s = clock.monotonic_s()
    logged_s, count = began_s, 0
    try:
        low, end = clients.watermarks(consumer, topic, partition)
        if not low <= table.offset <= end:  # it was trimmed, or made anew: all that there is, is read
            table.put_many({}, low)
        start = table.offset
        if start >= end:
            return True
        consumer.assign([TopicPartition(topic, partition, start)])
        while clock.monotonic_s() - began_s < wait_s and not stop.is_set():
            for message in consumer.consume(_RECORDS_AT_ONCE, 0.2):
                error = message.error()
                offset = message.offset() or 0
                if error is None:
                    found = vectors_by_fingerprint(message.value(), topics.version)
                    table.put_many(found, offset + 1)
                    count += len(found)
                    metrics.table_refilled.inc(len(found))
                elif error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                elif offset >= end:
                    table.put_many({}, offset)
                    _report(partition, count, clock.monotonic_s() - began_s)
                    return True
            if clock.monotonic_s() - logged_s > _LOG_EVERY_S:
                logged_s = clock.monotonic_s()
                share = (table.offset - start) / (end - start)
                _log.info("partition %d: table refilled to %.0f %%, %d vectors", partition, share * 100, count)
    except KafkaException as error:
        raise Retry(f"vectors of {topic}/{partition}: {error.args[0].str()}") from None
    finally:
        consumer.close()
    if stop.is_set():
        return False
    _log.warning("partition %d: table not whole after restore_wait_s = %.0f s; misses until it is", partition, wait_s)
    return False


def _report(partition: int, count: int, seconds: float) -> None:
    if count:
        _log.info("partition %d: %d vectors refilled in %.1f s", partition, count, seconds)
