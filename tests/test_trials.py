"""Laws of trying contents one by one: what is done is done once, whoever goes on, and leaving is no death."""

import threading

import pytest
from confluent_kafka import TopicPartition

from encoders import Engine, load_encoder
from schemas.chunk import ChunkBuilder
from schemas.content import fingerprinter, partition_of
from streams import clients
from streams.control import create_ray
from streams.encode import Encode
from streams.metrics import Metrics
from streams.settings import Settings
from streams.suspect import Suspicion
from streams.topics import Topics
from tests.oracle import read_embeddings, topics_of
from tests.waiting import wait_until

pytestmark = pytest.mark.broker

TEXTS = 5


def put_chunk(settings: Settings, topics: Topics) -> None:
    """A chunk of misses: of each content two posts."""
    fingerprint = fingerprinter(topics.version, "")
    builder = ChunkBuilder()
    for number in range(2 * TEXTS):
        text = f"text {number % TEXTS}".encode()
        place = builder.add_content(fingerprint(text), text)
        assert partition_of(fingerprint(text), 1) == 0
        builder.add_post(f"p{number}", place, ("posts", 0), number, 5)
    producer = clients.producer(settings)
    producer.produce(topics.misses, builder.build(topics.version).SerializeToString())
    assert producer.flush(60) == 0


def test_who_leaves_in_between_is_gone_on_after(settings: Settings) -> None:
    """Of a chunk that killed two owners each one after them tries a content and leaves: the offset stays at the chunk,
    its metadata count what is done, every post comes out once, and in the end nothing is suspect.
    """
    settings = settings.model_copy(update={"partitions": 1})
    create_ray(settings)
    topics = topics_of(settings)
    put_chunk(settings, topics)
    place = TopicPartition(topics.misses, 0)
    group = clients.consumer(settings, topics_of(settings).encode_group)
    died = str(Suspicion(attempts=2, until=1, by="predecessor"))
    group.commit(offsets=[TopicPartition(place.topic, 0, 0, metadata=died)], asynchronous=False)
    for done in range(1, TEXTS + 1):
        with Engine(load_encoder("hash"), 1_024) as engine:
            owner = Encode(settings, topics, Metrics.create(), engine, stop=threading.Event())
            wait_until(owner.step, "a content is done", lambda: None)
            owner.close()
        (left,) = group.committed([place], 60)
        suspicion = Suspicion.parse(left.metadata, "me")
        expected = Suspicion(attempts=2, until=1, content=done) if done < TEXTS else Suspicion()
        assert (left.offset, suspicion) == (int(done == TEXTS), expected)
    group.close()
    seen = read_embeddings(settings)
    assert seen.ids == {f"p{number}": 1 for number in range(2 * TEXTS)}
    assert seen.computed == TEXTS
