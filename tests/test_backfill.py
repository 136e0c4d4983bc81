"""Laws of the two lanes: posts of a backfill are embedded like all others, and after those that are live."""

import threading
from contextlib import closing
from itertools import pairwise

import pytest

from encoders import Engine, load_encoder
from encoders.hashing import HashEncoder
from schemas.chunk import ChunkBuilder
from schemas.content import fingerprinter, normalise
from schemas.public_pb2 import Embedding
from streams import clients, clock
from streams.control import create_ray
from streams.encode import Encode
from streams.metrics import Metrics
from streams.settings import Settings
from streams.up import Pipeline
from tests.oracle import await_embeddings, post, read_embeddings, read_records, send, topics_of
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker

BACKFILL, LIVE = 1_500, 10


@pytest.fixture
def two_lanes(settings: Settings) -> Settings:
    """Settings with a topic for backfills; of one partition, whose order says what came first."""
    backfill = (f"{settings.posts_topics[0]}-backfill",)
    return settings.model_copy(update={"backfill_topics": backfill, "partitions": 1})


def in_backfill(settings: Settings) -> Settings:
    """For who sends to the other lane."""
    return settings.model_copy(update={"posts_topics": settings.backfill_topics})


def test_live_posts_overtake_a_backfill(two_lanes: Settings, tweets: list[str]) -> None:
    """Of posts that come when 1,500 of a backfill wait for the encoder all are out before half of these, and each of
    either lane comes out once; a content that both have is a hit for whoever is later.
    """
    texts = list({normalise(text): text for text in tweets if text}.values())[: BACKFILL + LIVE]
    settings = two_lanes.model_copy(update={"model": "minilm"})
    create_ray(settings)
    with Pipeline(settings) as pipeline:
        pipeline.wait_ready(WAIT_S)
        send(in_backfill(settings), [post(f"old{number}", text) for number, text in enumerate(texts[:BACKFILL])])
        await_embeddings(settings, 1)
        send(settings, [post(f"new{number}", text) for number, text in enumerate(texts[BACKFILL:])])
        await_embeddings(settings, BACKFILL + LIVE)
        send(settings, [post("again", texts[0])])
        seen = await_embeddings(settings, BACKFILL + LIVE + 1)
        pipeline.raise_failure()
    records = read_records(settings, topics_of(settings).embeddings)
    ids = [Embedding.FromString(record.value()).post_id for record in records]
    assert sorted(ids) == sorted(
        [*(f"old{number}" for number in range(BACKFILL)), *(f"new{number}" for number in range(LIVE)), "again"]
    )
    assert max(ids.index(f"new{number}") for number in range(LIVE)) < BACKFILL / 2
    assert seen.computed == len(texts)


def test_live_windows_alone_are_urgent(two_lanes: Settings) -> None:
    """Windows are of one lane, and the engine is told which ones others are to wait for."""
    create_ray(two_lanes)
    topics = topics_of(two_lanes)
    fingerprint = fingerprinter(topics.version, "")
    producer = clients.producer(two_lanes)
    for topic in (topics.backfill_misses, topics.misses):
        builder = ChunkBuilder()
        text = topic.encode()
        builder.add_post(topic, builder.add_content(fingerprint(text), text), (two_lanes.posts_topics[0], 0), 0, 0)
        producer.produce(topic, builder.build(topics.version).SerializeToString(), partition=0)
    assert producer.flush(WAIT_S) == 0
    urgent: list[tuple[list[str], bool]] = []

    class Noting(Engine):
        def submit(self, texts, is_urgent=True):
            urgent.append((list(texts), is_urgent))
            return super().submit(texts, is_urgent)

    with Noting(load_encoder("hash"), 1_024) as engine:
        encode = Encode(two_lanes, topics, Metrics.create(), engine, stop=threading.Event())
        with closing(encode):
            wait_until(lambda: len(read_embeddings(two_lanes).ids) == 2, "both are embedded", encode.step)
            assert encode.positions() == {(topics.misses, 0): 1, (topics.backfill_misses, 0): 1}
    assert sorted(urgent) == sorted([([topics.misses], True), ([topics.backfill_misses], False)])


def test_a_share_of_the_encoder_leaves_it_the_rest(two_lanes: Settings) -> None:
    """Where chunks may take a quarter of its time, it rests after each window three times as long as that took."""
    create_ray(two_lanes)
    topics = topics_of(two_lanes)
    producer = clients.producer(two_lanes)
    for number in range(4):
        builder = ChunkBuilder(is_backfill=True, job="old", share=0.25)
        text = f"text {number}".encode()
        content = builder.add_content(fingerprinter(topics.version, "")(text), text)
        builder.add_post(f"old{number}", content, (two_lanes.posts_topics[0], 0), number, 0)
        producer.produce(topics.backfill_misses, builder.build(topics.version).SerializeToString(), partition=0)
    assert producer.flush(WAIT_S) == 0
    begun_s: list[float] = []

    class Noting(Engine):
        def submit(self, texts, is_urgent=True):
            begun_s.append(clock.monotonic_s())
            return super().submit(texts, is_urgent)

    class Slow(HashEncoder):
        def encode(self, tokens, *arguments, **more):
            clock.sleep_s(0.1)
            return super().encode(tokens, *arguments, **more)

    hashing = load_encoder("hash")
    with Noting(Slow(hashing.spec, hashing.dims), 1_024) as engine:
        one_a_window = two_lanes.model_copy(update={"window_tokens": 1})
        with closing(Encode(one_a_window, topics, Metrics.create(), engine, stop=threading.Event())) as encode:
            wait_until(lambda: len(begun_s) == 4, "all are begun", encode.step)  # asked at no cost: it is timed
    assert len(begun_s) == 4
    assert all(later - earlier >= 0.4 for earlier, later in pairwise(begun_s))
