"""The client on a real broker: what it publishes, what it commits, which ray it reads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import manyray
from manyray.client import Client
from manyray.rays import find_embeddings_topic
from schemas.errors import Fatal, Reject, Retry
from schemas.post import Post, decode_post
from schemas.public_pb2 import CACHED, FLOAT32, Embedding
from streams import clients, clock
from streams.broker import Broker
from streams.control import create_ray
from streams.readers import find_readers
from streams.settings import Settings, load_settings
from streams.topics import Topics, create_topics
from streams.version import version_of
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker

IDLE_S = 5.0


@pytest.fixture
def client(settings: Settings):
    """A client of a ray of its own, whose topics exist."""
    create_ray(settings)
    with Client(settings) as client:
        yield client


def embedding(number: int, **fields: object) -> bytes:
    """The record of an embedding, whose vector is its number four times."""
    vector = np.full(4, number, "<f4").tobytes()
    whole = {
        "post_id": f"p{number}",
        "dtype": FLOAT32,
        "dims": 4,
        "vector": vector,
        "origin": CACHED,
        "promoted": True,
        **fields,
    }
    return Embedding(**whole).SerializeToString()  # type: ignore[arg-type]


def read_values(settings: Settings, topic: str, count: int) -> list[bytes]:
    """So many records of a topic, from its start."""
    consumer = clients.consumer(settings, f"oracle-{clock.random_id()}")
    consumer.subscribe([topic])
    try:
        return [message.value() or b"" for message in consumer.consume(count, 30)]
    finally:
        consumer.close()


def write(settings: Settings, *values: bytes | None) -> None:
    """Put records on the embeddings topic, all in one partition, so that their order is known."""
    producer = clients.producer(settings)
    for number, value in enumerate(values):
        producer.produce(Topics.of(settings, version_of(settings)).embeddings, value, f"p{number}", partition=0)
    assert producer.flush(30) == 0


def test_publish_takes_whatever_can_be_a_post(client: Client):
    """A Post, a tuple, a mapping and a text are posts; the count is theirs, and a text's id is its own."""
    posts = [Post("a", "1"), ("b", "2"), {"id": "c", "text": "3", "more": 0}, "4", "4"]
    assert client.publish(iter(posts)) == 5
    values = read_values(client.settings, client.settings.posts_topics[0], 5)
    found = sorted((decode_post(value, 100) for value in values), key=lambda post: (post.text, len(post.id)))
    assert [post.text for post in found] == ["1", "2", "3", "4", "4"]
    assert [post.id for post in found[:3]] == ["a", "b", "c"]
    assert found[3].id != found[4].id


@pytest.mark.parametrize("bad", [3, ("id",), ("id", 3), {"id": "x"}, {"id": 1, "text": "x"}, ("id", "\ud800"), None])
def test_what_is_no_post_is_rejected_by_its_number(client: Client, bad: object):
    """The posts before it are published, and the error names which one it is."""
    with pytest.raises(Reject, match="post 3 "):
        client.publish([("a", "1"), ("b", "2"), bad, ("d", "4")])  # type: ignore[list-item]
    assert len(read_values(client.settings, client.settings.posts_topics[0], 2)) == 2


def test_a_producer_that_cannot_go_on_is_made_anew(client: Client):
    """The call in which it fails says to publish again, and the next one has a producer that works."""
    no_transaction_is_open = f"test{clock.random_id()}"
    client._producer = clients.producer(client.settings, no_transaction_is_open)
    with pytest.raises(Retry, match=r"1 posts were not delivered .*: publish them again"):
        client.publish([("a", "1")])
    assert client.publish([("a", "1")]) == 1


def test_publish_refuses_a_topic_that_is_missing(client: Client):
    """No topic is made by writing to it: its name may be a slip."""
    with pytest.raises(Fatal, match="topic posst is missing: run `manyray topics create`"):
        client.publish([("a", "1")], "posst")
    with pytest.raises(Fatal, match="topic posst is missing"):
        client.publish([("a", "1")], "posst")


def test_a_batch_is_a_matrix_with_ids(client: Client):
    """Row i of `vectors` belongs to ids[i] and embeddings[i]; a tombstone is told by its key."""
    write(client.settings, embedding(0), embedding(1), None, embedding(3))
    with client.subscribe(client.settings.ray, "g", batch_posts=100, wait_s=IDLE_S) as subscription:
        batch = next(subscription)
    assert batch.ids == [one.post_id for one in batch.embeddings] == ["p0", "p1", "p3"]
    assert batch.vectors.dtype == np.float32
    assert batch.vectors.tolist() == [[0] * 4, [1] * 4, [3] * 4]
    assert batch.vectors.flags.writeable
    assert batch.deleted_ids == ["p2"]


def versioned(client: Client) -> str:
    """The ray's version by its name, of which a batch is full if there is enough: no end of a partition is in it."""
    return f"{client.settings.ray}@{version_of(client.settings)}"


def ids_of(client: Client, group: str, use: Callable[[list[str]], None] = lambda _: None) -> list[str]:
    """The ids that a group gets until nothing more comes, two at a time."""
    ids: list[str] = []
    with client.subscribe(versioned(client), group, batch_posts=2, idle_s=IDLE_S) as subscription:
        for batch in subscription:
            ids += batch.ids
            use(batch.ids)
    return ids


def test_what_lies_behind_an_end_does_not_come_again(client: Client):
    """An end of a partition, and records that were written since, in one batch: the group goes on behind these."""
    topic = Topics.of(client.settings, version_of(client.settings)).embeddings
    with ThreadPoolExecutor(1) as pool, client.subscribe(client.settings.ray, "g", wait_s=3.0) as subscription:
        first = pool.submit(next, subscription)
        wait_until(
            lambda: sum(reader.members for reader in find_readers(client.settings, topic) if reader.group == "g"),
            "it is at the end",
        )
        write(client.settings, embedding(0), embedding(1))
        assert first.result(WAIT_S).ids == ["p0", "p1"]
    assert ids_of(client, "g") == []


def test_a_batch_whose_body_raises_comes_again(client: Client):
    """What was consumed before is committed; the batch at hand is not, and nothing after it."""
    write(client.settings, *(embedding(number) for number in range(6)))

    failed: list[str] = []

    def fail_at_second(ids: list[str]) -> None:
        if "p2" in ids:
            failed.extend(ids)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ids_of(client, "g", fail_at_second)
    first = int(failed[0][1:])  # ends of other partitions take places in a batch
    assert first > 0
    assert ids_of(client, "g") == [f"p{number}" for number in range(first, 6)]
    assert ids_of(client, "g") == []


def test_a_loop_without_a_with_block_commits_no_batch_at_hand(client: Client):
    """An exception that is caught around a bare loop is one too: closing the client commits nothing."""
    write(client.settings, *(embedding(number) for number in range(4)))
    with Client(client.settings) as other:
        subscription = other.subscribe(client.settings.ray, "g", batch_posts=2)  # held, so that only `other` closes it
        first = 0
        try:
            for batch in subscription:
                if "p2" in batch.ids:
                    first = int(batch.ids[0][1:])  # ends of other partitions take places in a batch
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    assert first > 0
    assert ids_of(client, "g") == [f"p{number}" for number in range(first, 4)]


def test_leaving_a_with_block_commits_the_batch_at_hand(client: Client):
    """A loop that breaks off has consumed what it was given."""
    write(client.settings, *(embedding(number) for number in range(4)))
    with client.subscribe(versioned(client), "g", batch_posts=2) as subscription:
        for batch in subscription:
            assert batch.ids == ["p0", "p1"]
            break
    assert ids_of(client, "g") == ["p2", "p3"]


@pytest.mark.parametrize(
    "value", [b"\xff\xff", b"", b'{"id": "x"}', embedding(0, dims=5), embedding(0, dims=0, vector=b"")]
)
def test_a_record_that_is_no_embedding_is_named(client: Client, value: bytes):
    """The error says where it lies, so that a person can look at it or go past it."""
    write(client.settings, embedding(0), value)
    with (
        client.subscribe(versioned(client), "g", batch_posts=2, wait_s=IDLE_S) as subscription,
        pytest.raises(Fatal, match=r"/0 offset 1 is not an Embedding"),
    ):
        list(subscription)


def test_a_record_that_is_no_embedding_passes_over_nothing(client: Client):
    """It ends the subscription, also for who goes on: what came in the same batch comes to the next."""
    write(client.settings, embedding(0), b"\xff\xff", embedding(2), embedding(3))
    with client.subscribe(versioned(client), "g", batch_posts=3, wait_s=IDLE_S, idle_s=IDLE_S) as subscription:
        with pytest.raises(Fatal):
            next(subscription)
        assert list(subscription) == []
    with client.subscribe(versioned(client), "g", batch_posts=1, wait_s=IDLE_S) as subscription:
        assert next(subscription).ids == ["p0"]


def test_a_bare_ray_is_its_promoted_version(settings: Settings):
    """As the control topic says, whatever other topics there are; a version that there is none of is named."""
    ray = settings.ray
    with pytest.raises(Fatal, match=f"no ray {ray}"):
        find_embeddings_topic(settings, ray)
    create_ray(settings)
    create_topics(settings, "b" * 12)
    assert find_embeddings_topic(settings, ray) == f"embeddings.{ray}.{version_of(settings)}"
    assert find_embeddings_topic(settings, f"{ray}@{'b' * 12}").endswith("b" * 12)
    with pytest.raises(Fatal, match=f"no version {'c' * 12}; there are "):
        find_embeddings_topic(settings, f"{ray}@{'c' * 12}")


def test_connect_takes_settings_and_refuses_unknown_ones(broker: Broker):
    """`connect` is the settings' front door: keywords are settings, and a slip is named."""
    with manyray.connect(broker.bootstrap_servers, model="hash") as client:
        assert client.settings == load_settings(bootstrap_servers=broker.bootstrap_servers, model="hash")
    with pytest.raises(manyray.Fatal, match="did you mean model"):
        manyray.connect(broker.bootstrap_servers, modell="hash")
    with pytest.raises(manyray.Fatal, match=r"no Kafka broker answers at 127\.0\.0\.1:1"):
        manyray.connect("127.0.0.1:1")
