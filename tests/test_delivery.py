"""At least once: nothing is lost, and what repeats is told apart from what is missing."""

import os
import threading

import pytest
from confluent_kafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Fatal, Retry
from schemas.internal_pb2 import Chunk, Source
from streams import clients, clock
from streams.checkpoint import Progress
from streams.metrics import Metrics
from streams.settings import Settings
from streams.topics import RECORD_BYTES_MAX
from streams.transactions import FlushedProducer, StageProducer, TransactionalProducer
from tests.test_transactions import read
from tests.waiting import wait_until

broker = pytest.mark.broker


@pytest.fixture
def producer(settings: Settings) -> FlushedProducer:
    """An open one."""
    relaxed = settings.model_copy(update={"delivery": "at_least_once"})
    made = StageProducer.create(relaxed, f"test{clock.random_id()}", Metrics.create(), threading.Event())
    assert isinstance(made, FlushedProducer)
    made.open()
    return made


@broker
def test_exactly_once_is_the_default(settings: Settings) -> None:
    """Nobody gets duplicates who did not ask for them."""
    made = StageProducer.create(settings, "test", Metrics.create(), threading.Event())
    assert isinstance(made, TransactionalProducer)


@broker
def test_what_is_settled_is_there(settings: Settings, topic: str, producer: FlushedProducer) -> None:
    """Readers of committed records see it before anything is committed: no transaction holds it back."""
    producer.begin()
    producer.produce_keyed([(b"key", bytes([number])) for number in range(100)], topic)
    producer.settle()
    found = read(settings, topic, 0) + read(settings, topic, 1)
    assert sorted(value for _, value in found) == [bytes([number]) for number in range(100)]


@broker
def test_what_brokers_do_not_take_is_an_error(settings: Settings, topic: str, producer: FlushedProducer) -> None:
    """It is never taken for done; built anew, the producer goes on."""
    producer.begin()
    producer.produce(topic, os.urandom(4 * RECORD_BYTES_MAX), partition=0)
    producer.produce(topic, b"behind", partition=0)
    with pytest.raises(Retry, match="too large"):
        producer.commit()
    producer.open()
    producer.begin()
    producer.produce(topic, b"again", partition=1)
    producer.commit()
    assert read(settings, topic, 1) == [(None, b"again")]


@broker
def test_offsets_are_committed_after_the_records(settings: Settings, topic: str, producer: FlushedProducer) -> None:
    """With their metadata; of records that were not taken no offset is committed."""
    member = clients.consumer(settings, f"group{clock.random_id()}")
    member.subscribe([topic])
    wait_until(member.assignment, "a partition is assigned", lambda: member.poll(0.1))
    producer.begin()
    producer.produce(topic, b"taken", partition=0)
    producer.commit([TopicPartition(topic, 0, 5, metadata="1:2,3")], member)
    producer.begin()
    producer.produce(topic, os.urandom(4 * RECORD_BYTES_MAX), partition=0)
    with pytest.raises(Retry):
        producer.commit([TopicPartition(topic, 0, 9)], member)
    (found,) = member.committed([TopicPartition(topic, 0)], 30)
    member.close()
    assert (found.offset, found.metadata) == (5, "1:2,3")


def chunk(sequence: int, epoch_ms: int = 5) -> Chunk:
    """A chunk of one source."""
    return Chunk(sources=[Source(topic="posts", partition=0, epoch_ms=epoch_ms, sequence=sequence)])


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=8))
def test_numbers_that_come_again_are_no_gap(deaths):
    """Ingest sends some chunks, dies, and the next one repeats some of them: of each number the first is followed,
    and a number that never came is still a gap.
    """
    progress, offset, last = Progress(), 0, 0
    for sent, repeated in deaths:
        start = max(1, last + 1 - repeated)
        for number in range(start, last + sent + 1):
            progress = progress.after(chunk(number), offset, repeats=True)
            offset += 1
        last += sent
    assert progress.lookups_offset == offset
    assert progress.sources["posts", 0, ""].sequence == last
    with pytest.raises(Fatal, match="missing"):
        progress.after(chunk(last + 2), offset, repeats=True)


def test_a_dead_epoch_that_still_speaks_is_a_repeat():
    """An ingest that lost its partition may send what it had in hand, after its successor has begun anew."""
    progress = Progress().after(chunk(1, epoch_ms=6), 0, repeats=True)
    assert progress.after(chunk(7, epoch_ms=5), 1, repeats=True).sources == progress.sources
    with pytest.raises(Fatal):
        progress.after(chunk(7, epoch_ms=5), 1)
