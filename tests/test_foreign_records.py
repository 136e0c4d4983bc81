"""Records that another program wrote to Manyray's own topics: nothing is lost over them, and somebody is told."""

import pytest
from confluent_kafka import Producer

from streams.checkpoint import KEY
from streams.control import create_ray
from streams.settings import Settings
from streams.up import Pipeline
from tests.oracle import await_embeddings, post, read_embeddings, send, topics_of
from tests.test_cli import flags, manyray
from tests.waiting import WAIT_S

pytestmark = pytest.mark.broker

FOREIGN = b'{"id": "not", "text": "ours"}'


def put(settings: Settings, topic: str, value: bytes | None, key: bytes | None = None) -> None:
    """What another program might do."""
    producer = Producer({"bootstrap.servers": settings.bootstrap_servers})
    for partition in range(settings.partitions):
        producer.produce(topic, value, key, partition=partition)
    assert producer.flush(30) == 0


def run_pipeline(settings: Settings, post_id: str) -> None:
    """One post through."""
    with Pipeline(settings) as pipeline:
        pipeline.wait_ready(WAIT_S)
        before = len(read_embeddings(settings).ids)
        send(settings, [post(post_id, f"text of {post_id}")])
        await_embeddings(settings, before + 1)


@pytest.mark.parametrize(("role", "topic"), [("dedup", "lookups"), ("encode", "misses")])
def test_a_chunk_that_is_none_stops_its_role(settings: Settings, role: str, topic: str, tmp_path) -> None:
    """The line names the record and the remedy; with the remedy the posts beside it come out once."""
    create_ray(settings)
    run_pipeline(settings, "before")
    name = getattr(topics_of(settings), topic)
    put(settings, name, FOREIGN)
    done = manyray(role, *flags(settings), cwd=tmp_path)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"manyray: {name}/")
    assert "holds no chunk" in said
    assert "accept_gaps = true" in said
    assert "not" not in [word.strip('"') for word in said.split()]  # a stranger's text is not ours to show
    run_pipeline(settings.model_copy(update={"accept_gaps": True}), "after")
    seen = read_embeddings(settings)
    assert (seen.ids.total(), set(seen.ids)) == (2, {"before", "after"})


def test_a_chunk_of_no_posts_is_passed_over(settings: Settings) -> None:
    """It holds nothing that could be lost: the posts beside it come out once."""
    create_ray(settings)
    topics = topics_of(settings)
    for value in (None, b""):
        put(settings, topics.lookups, value)
        put(settings, topics.misses, value)
    run_pipeline(settings, "before")
    put(settings, topics.lookups, None)
    put(settings, topics.misses, None)
    run_pipeline(settings, "after")
    seen = read_embeddings(settings)
    assert (seen.ids.total(), set(seen.ids)) == (2, {"before", "after"})


@pytest.mark.parametrize("value", [FOREIGN, None])
def test_what_the_table_cannot_learn_costs_nothing_else(settings: Settings, value: bytes | None) -> None:
    """Strange records among the vectors and the checkpoints are passed over, while it runs and when it starts."""
    create_ray(settings)
    topics = topics_of(settings)
    put(settings, topics.vectors, value)
    put(settings, topics.checkpoints, value, b"other")
    put(settings, topics.checkpoints, b"{", KEY)
    run_pipeline(settings, "before")
    put(settings, topics.vectors, value)
    put(settings, topics.checkpoints, value, b"other")
    put(settings, topics.checkpoints, b"{", KEY)
    with Pipeline(settings) as pipeline:
        pipeline.wait_ready(WAIT_S)
        put(settings, topics.vectors, value)
        send(settings, [post("same", "text of before"), post("after", "text of after")])
        await_embeddings(settings, 3)
    seen = read_embeddings(settings)
    assert (seen.ids.total(), seen.computed) == (3, 2)
