"""A transaction that fails under way: the stage goes back to what was committed, and does the rest once."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from encoders.engine import Engine
from encoders.load import load_encoder
from schemas.content import fingerprinter
from schemas.errors import Retry
from schemas.internal_pb2 import Chunk
from schemas.post import Post
from streams import clients, failpoints, transactions
from streams.checkpoint import Progress
from streams.encode import Encode
from streams.ingest import Ingest
from streams.metrics import Metrics
from streams.packing import Packer
from streams.settings import Settings
from streams.topics import Topics
from streams.transactions import TransactionalProducer
from tests.oracle import post, read_embeddings, read_records, send
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker


def steal(settings: Settings, producer: TransactionalProducer) -> None:
    """End a producer's epoch from outside, as the broker does when its transaction takes too long."""
    thief = TransactionalProducer(settings, producer.transactional_id, Metrics.create(), threading.Event())
    thief.open()
    thief.close()


def chunks(settings: Settings, topic: str) -> list[tuple[int, Chunk]]:
    """Every committed chunk of a topic with its partition; those of a partition are in order."""
    records = read_records(settings, topic)
    return [(record.partition() or 0, Chunk.FromString(record.value() or b"")) for record in records]


def test_ingest_passes_posts_on_once(settings: Settings, topics: Topics) -> None:
    """Its numbers go on from what was committed, so that dedup finds neither a gap nor a repeat."""
    metrics = Metrics.create()
    done = metrics.ingest_posts._value.get
    with closing(Ingest.join(settings, topics, metrics, threading.Event())) as ingest:
        for first in (0, 100):
            send(settings, [post(str(number), f"text {number}") for number in range(first, first + 100)])
            wait_until(lambda first=first: done() >= first + 100, "the posts are taken", ingest.step)
        send(settings, [post(str(number), f"text {number}") for number in range(200, 300)])
        steal(settings, ingest.producer)
        with pytest.raises(Retry):
            wait_until(lambda: False, "a commit fails", ingest.step)
        ingest.recover()
        wait_until(lambda: done() >= 300, "the rest is taken", ingest.step)
    found = chunks(settings, topics.lookups)
    assert Counter(post_id for _, chunk in found for post_id in chunk.ids) == Counter(map(str, range(300)))
    progress = [Progress()] * settings.partitions
    for offset, (partition, chunk) in enumerate(found):
        progress[partition] = progress[partition].after(chunk, offset)


def put_misses(settings: Settings, topics: Topics, numbers: range) -> None:
    """What dedup would send."""
    packer = Packer(fingerprinter(topics.version, ""), settings.partitions, settings.chunk_posts_max)
    source = (topics.posts[0], 0)
    for number in numbers:
        packer.add(Post(str(number), f"text {number}"), source, number, 0)
    producer = clients.producer(settings)
    for partition, builder in packer.take():
        producer.produce(topics.misses, builder.build(topics.version).SerializeToString(), partition=partition)
    assert producer.flush(WAIT_S) == 0


@contextmanager
def encoding(settings: Settings, topics: Topics, metrics: Metrics) -> Iterator[Encode]:
    """An encoder that has embedded the first 100 posts; it is ended in order."""
    small = settings.model_copy(update={"encode_wait_ms": 1, "window_tokens": 64})
    with Engine(load_encoder("hash"), 1_024) as engine:
        encode = Encode(small, topics, metrics, engine, stop=threading.Event())
        with closing(encode):
            put_misses(settings, topics, range(100))
            done = metrics.encode_posts._value.get
            wait_until(lambda: done() >= 100, "the misses are encoded", encode.step)
            yield encode


def test_encode_publishes_once(settings: Settings, topics: Topics) -> None:
    """What it had in hand is read and published again, once; windows behind the failed one go with it."""
    metrics = Metrics.create()
    with encoding(settings, topics, metrics) as encode:
        put_misses(settings, topics, range(100, 300))
        steal(settings, encode.producer)
        with pytest.raises(Retry):
            wait_until(lambda: False, "a commit fails", encode.step)
        encode.recover()
        done = metrics.encode_posts._value.get
        wait_until(lambda: done() >= 300, "the rest is encoded", encode.step)
    seen = read_embeddings(settings)
    assert seen.ids == Counter(map(str, range(300)))
    assert seen.computed == 300


def test_encode_publishes_nothing_twice_at_its_end(settings: Settings, topics: Topics, tmp_path, monkeypatch) -> None:
    """Whatever goes wrong right after a commit, what was committed is not published again when the process ends."""
    monkeypatch.setattr(transactions, "reach", failpoints.reacher(str(tmp_path)))
    with encoding(settings, topics, Metrics.create()) as encode:
        put_misses(settings, topics, range(100, 300))
        (tmp_path / "encode.committed").write_text("crash")
        with pytest.raises(RuntimeError):
            wait_until(lambda: False, "it crashes", encode.step)
    ids = read_embeddings(settings).ids
    assert len(ids) > 100
    assert max(ids.values()) == 1
