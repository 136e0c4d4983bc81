"""Laws of deletions: a post that is deleted has a tombstone behind its embedding, in every version."""

import os
import signal
from collections import Counter

import pytest
from confluent_kafka import Message

from manyray.client import Client
from manyray.ray_orders import add_version
from schemas.chunk import ChunkBuilder
from schemas.content import hasher
from schemas.errors import Reject
from schemas.post import Post, decode_deletion
from schemas.public_pb2 import Embedding
from streams.packing import Packer
from streams.settings import Settings
from streams.topics import Topics, list_partitions
from streams.up import Pipeline
from streams.version import version_of
from tests.oracle import read_records
from tests.replaying import begin, run
from tests.waiting import wait_until

PARTITIONS = 3
SOURCE = ("posts", 0)


@pytest.fixture
def packer() -> Packer:
    """One of three partitions, and of chunks of at most ten."""
    return Packer(hasher(), PARTITIONS, 10)


def deleted(chunks: list[tuple[int, ChunkBuilder]]) -> list[tuple[int, list[str]]]:
    """The partition and the deletions of each chunk."""
    return [(partition, [each.id for each in builder.deletions]) for partition, builder in chunks]


def test_a_deletion_goes_to_every_partition_behind_the_posts_before_it(packer: Packer) -> None:
    """As any of them may have had the post; those of a while share a chunk in each."""
    packer.add(Post("a", "text"), SOURCE, 1, 0)
    packer.delete("a", SOURCE, 2)
    packer.add(Post("b", "text"), SOURCE, 3, 0)
    packer.delete("c", SOURCE, 4)
    chunks = packer.take()
    assert chunks[0][1].ids == ["a", "b"]
    assert deleted(chunks) == [(chunks[0][0], []), *((at, ["a", "c"]) for at in range(PARTITIONS))]
    assert not packer.take()


def test_who_comes_back_stands_behind_the_deletion(packer: Packer) -> None:
    """A post that is published again after its deletion is in a chunk after it, whatever its content."""
    packer.delete("a", SOURCE, 1)
    packer.add(Post("b", "text"), SOURCE, 2, 0)
    packer.add(Post("a", "text"), SOURCE, 3, 0)
    ids = [(builder.ids, [each.id for each in builder.deletions]) for _, builder in packer.take()]
    assert ids == [(["b"], []), *[([], ["a"])] * PARTITIONS, (["a"], [])]


def test_deletions_of_a_chunk_are_bounded(packer: Packer) -> None:
    """By what bounds its posts."""
    for number in range(25):
        packer.delete(f"p{number}", SOURCE, number)
    sizes = Counter(len(builder.deletions) for _, builder in packer.take())
    assert sizes == {10: 2 * PARTITIONS, 5: PARTITIONS}


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "no_value"), (b"", "no_value"), (b"\xff", "not_utf8"), (b"x" * 257, "id_too_long")]
)
def test_a_key_that_is_no_id_deletes_nothing(key: bytes | None, reason: str) -> None:
    """It is rejected, as a post is."""
    with pytest.raises(Reject) as raised:
        decode_deletion(key)
    assert raised.value.reason == reason


def last_of(settings: Settings, version: str) -> dict[str, Message]:
    """The last record of each post among a version's embeddings."""
    records = read_records(settings, Topics.of(settings, version).embeddings)
    return {(record.key() or b"").decode(): record for record in records}


@pytest.mark.broker
def test_every_version_tells_of_a_deletion(settings: Settings, pipeline: Pipeline) -> None:
    """Behind what it has of the post, computed or not, in as many tombstones as there are partitions, which say where
    the deletion stands; its neighbours stay, and who reads is told.
    """
    other = settings.model_copy(update={"model": "hash:64"})
    one, two = version_of(settings), version_of(other)
    add_version(other, settings.ray, 0.5)
    ids = [f"p{number}" for number in range(200)]
    gone, topic = ids[::2], settings.posts_topics[0]
    with Client(settings) as client:
        client.publish([(post_id, f"text {post_id}") for post_id in ids])
        assert client.delete(gone) == len(gone)  # most of them are in the encoder then
        wait_until(lambda: last_of(settings, one).keys() == set(ids), "all is out")
        for version in (one, two):
            wait_until(lambda: tombstones(settings, version).total() == 4 * len(gone), "all tombstones are there")  # noqa: B023
            assert tombstones(settings, version) == dict.fromkeys(gone, 4)
        last = last_of(settings, one)
        assert {post_id for post_id, record in last.items() if record.value()} == set(ids) - set(gone)
        assert not any(record.value() for post_id, record in last_of(settings, two).items() if post_id in gone)
        with client.subscribe(settings.ray, "readers", idle_s=20) as subscription:
            heard: set[str] = set()
            while heard != set(gone):
                heard.update(next(subscription).deleted_ids)
    told = dict(last[gone[0]].headers() or [])
    assert told["manyray-topic"] == topic.encode()
    assert 0 <= int(told["manyray-partition"]) < list_partitions(settings)[topic]
    embedding = next(
        Embedding.FromString(value)
        for record in read_records(settings, Topics.of(settings, one).embeddings)
        if (value := record.value()) and record.key() == gone[0].encode()
    )
    if embedding.source_partition == int(told["manyray-partition"]):
        assert embedding.source_offset < int(told["manyray-offset"])


@pytest.mark.broker
def test_a_kill_neither_loses_nor_doubles_a_deletion(settings: Settings, pipeline: Pipeline) -> None:
    """Of each there are as many tombstones as partitions, behind the embedding, though every role is killed."""
    version, ids = version_of(settings), [f"p{number}" for number in range(300)]
    with Client(settings) as client:
        for start in range(0, len(ids), 50):
            client.publish([(post_id, f"text {post_id}") for post_id in ids[start : start + 50]])
            client.delete(ids[start : start + 50])
            role = ("dedup", "encode", "ingest")[start // 50 % 3]
            pid = pipeline.pids[role]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: pipeline.pids.get(role) not in (None, pid), f"{role} is started again")  # noqa: B023
    wait_until(lambda: tombstones(settings, version).total() >= 4 * len(ids), "all are deleted")
    assert tombstones(settings, version) == dict.fromkeys(ids, 4)
    records = read_records(settings, Topics.of(settings, version).embeddings)
    assert Counter((record.key() or b"").decode() for record in records if record.value()) == Counter(ids)
    assert not any(record.value() for record in last_of(settings, version).values())


def tombstones(settings: Settings, version: str) -> Counter[str]:
    """How many each post has."""
    records = read_records(settings, Topics.of(settings, version).embeddings)
    return Counter((record.key() or b"").decode() for record in records if record.value() is None)


@pytest.mark.broker
def test_a_replay_passes_deletions_on(settings: Settings, pipeline: Pipeline) -> None:
    """Behind the posts before them, by its name; and its summary counts them."""
    version, topic = version_of(settings), settings.posts_topics[0]
    with Client(settings) as client:
        client.publish([("a", "one text"), ("b", "another")])
        client.delete(["a"])
        wait_until(lambda: tombstones(settings, version) == {"a": 4}, "it is deleted")
        done = run(settings, begin(settings, topic, "again"))
        assert (done.counts.posts, done.counts.tombstones, done.counts.rejected) == (2, 1, 0)
        assert tombstones(settings, version) == {"a": 8}
    last = last_of(settings, version)
    assert last["a"].value() is None
    assert dict(last["a"].headers() or [])["manyray-job"] == b"again"
    assert last["b"].value()
