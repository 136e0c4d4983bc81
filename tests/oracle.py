"""The oracle: reads topics with plain confluent-kafka, as any user would, and counts."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from schemas.public_pb2 import COMPUTED, Embedding
from streams import clients, clock
from streams.settings import Settings
from streams.topics import Topics
from streams.version import version_of

STALL_S = 90.0
"""No new record for so long while some are expected: the test fails instead of hanging."""


@dataclass
class Seen:
    """What a reader found."""

    ids: Counter[str] = field(default_factory=Counter, repr=False)
    computed: int = 0
    vectors: dict[str, np.ndarray] = field(default_factory=dict, repr=False)


def send(settings: Settings, values: Iterable[bytes | None]) -> int:
    """Produce records to the input topic as they are; returns how many."""
    producer = Producer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "linger.ms": 5,
            "compression.type": "zstd",
            "message.max.bytes": 30_000_000,
        }
    )
    count = 0
    for value in values:
        clients.produce(producer, settings.posts_topics[0], value)
        count += 1
    assert producer.flush(60) == 0
    return count


def post(post_id: str, text: str) -> bytes:
    """A post as a user's program writes it."""
    return json.dumps({"id": post_id, "text": text}).encode()


def remove(settings: Settings, topic: str, before: int) -> None:
    """Do as retention does: the first partition begins at that offset then."""
    admin = clients.admin_client(settings)  # while it is there, its futures are
    for future in admin.delete_records([TopicPartition(topic, 0, before)]).values():
        future.result(STALL_S)


def topics_of(settings: Settings) -> Topics:
    """The topics of a test."""
    return Topics.of(settings, version_of(settings))


def await_embeddings(settings: Settings, expected: int) -> Seen:
    """Read from the start until so many distinct ids have come, or none comes for `STALL_S`."""
    return _read_embeddings(settings, lambda seen: len(seen.ids) >= expected)


def read_embeddings(settings: Settings) -> Seen:
    """Read all there is, from the start to the end; call it when nothing is written any more."""
    return _read_embeddings(settings, None)


def _read_embeddings(settings, enough) -> Seen:
    seen = Seen()
    for message in _records(settings, topics_of(settings).embeddings, follow=enough is not None):
        if message is not None:
            embedding = Embedding.FromString(message.value())
            assert message.key() == embedding.post_id.encode()
            seen.ids[embedding.post_id] += 1
            seen.computed += embedding.origin == COMPUTED
            seen.vectors[embedding.post_id] = np.frombuffer(embedding.vector, "<f4")
        if enough is not None and enough(seen):
            return seen
    return seen


def read_rejected(settings: Settings) -> Counter[tuple[bytes | None, str]]:
    """All rejected records of this test's input topic: value and reason, counted."""
    found: Counter[tuple[bytes | None, str]] = Counter()
    for message in _records(settings, "rejected", follow=False):
        headers = dict(message.headers())
        if headers["manyray-topic"].decode() == settings.posts_topics[0]:
            found[message.value(), headers["manyray-reason"].decode()] += 1
    return found


def read_records(settings: Settings, topic: str) -> list[Message]:
    """All there is in a topic now."""
    return list(_records(settings, topic, follow=False))


def _records(settings: Settings, topic: str, follow: bool) -> Iterable[Message]:
    """Committed records of a topic; without `follow`, up to its end; with it, also None now and then, until none comes
    for `STALL_S`.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": f"oracle-{clock.random_id()}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",  # some tests trim
        }
    )
    try:
        partitions = consumer.list_topics(topic, 30).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        ended: set[int] = set()
        last_s = clock.monotonic_s()
        while clock.monotonic_s() - last_s < STALL_S:
            for message in consumer.consume(1_000, 0.5):
                error = message.error()
                if error is None:
                    last_s = clock.monotonic_s()
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended.add(message.partition())
                elif not error.retriable():
                    raise KafkaException(error)
            if follow:
                yield None
            elif len(ended) == len(partitions):
                return
        assert follow, f"{topic} gives neither records nor its end for {STALL_S:.0f} s"
    finally:
        consumer.close()
