"""Check from outside that nothing was lost or doubled: every post is embedded once, or rejected once, and never both.

python examples/verify.py HOST:PORT embeddings.textray.VERSION [--posts posts ...] [--rejected rejected] [--job NAME]

It reads the topics from start to end, with confluent-kafka and the published schema only: run it when nothing is
written any more, while the topics still hold everything. It prints a line of JSON, and exits with 1 if all is not well.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.public_pb2 import (
    COMPUTED,
    Embedding,
    Post,
)  # made from schemas/public.proto; any language's protoc makes yours

QUIET_MAX = 600
"""Waits for the next record of a topic that has more, of 0.1 s each."""
Place = tuple[str, int, int]
"""Topic, partition and offset of a post: what embeddings and rejected records name their post by."""


def records(servers: str, topic: str) -> Iterator[Message]:
    """Every committed record of a topic, from the start to the end as it is when that is reached.

    Ends the program where retention has removed records, or a transaction that is open hides some.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "verify",  # asked for by librdkafka; nothing is committed
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",  # else what retention has removed would be passed over
        }
    )
    quiet = 0
    try:
        found = consumer.list_topics(topic, 30).topics[topic]
        if found.error is not None:
            sys.exit(f"{topic}: {found.error.str()}")
        left = set(found.partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in left])
        while left:
            for message in consumer.consume(1_000, 0.1):
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    place = TopicPartition(topic, message.partition() or 0)
                    _, end = consumer.get_watermark_offsets(place, cached=True)
                    if (message.offset() or 0) < end:  # committed records end there, and there are others
                        where = f"{topic}/{place.partition} at offset {message.offset()}"
                        sys.exit(f"{where}: a transaction is open there and hides the rest, or somebody writes")
                    left.discard(place.partition)
                elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                    sys.exit(f"{topic}/{message.partition()} has lost its first records: there is nothing to compare")
                elif not error.retriable():
                    raise KafkaException(error)
                quiet = 0
            quiet += 1
            if quiet > QUIET_MAX:
                sys.exit(f"{topic} gives neither records nor its end: has each of its partitions a leader?")
    finally:
        consumer.close()


def place_of(message: Message) -> Place:
    """Where a record lies."""
    return message.topic() or "", message.partition() or 0, message.offset() or 0


def names(value: bytes, post_id: str) -> bool:
    """Whether a post, JSON or Protobuf, has this id."""
    try:
        is_json = value.lstrip().startswith(b"{")
        return (json.loads(value)["id"] if is_json else Post.FromString(value).id) == post_id
    except Exception:  # a record that is no post has no id
        return False


def verify(servers: str, posts: list[str], embeddings: str, rejected: str, job: str = "") -> dict[str, int]:
    """Count; all from `lost` on have to be 0, and never_computed too if the topic has every embedding there ever was.

    A post is contradicted if it is both embedded and rejected, and strange if what was made of it is not of it. Only
    what was made for `job` counts, if one is named, whoever computed it first; deletions are no posts.
    """
    _, ray, version = embeddings.split(".")
    sent: dict[Place, bytes | None] = {}
    for topic in posts:
        for message in records(servers, topic):
            sent[place_of(message)] = message.value()
    counts: Counter[Place] = Counter()
    fingerprints: set[bytes] = set()
    computed_once: set[bytes] = set()
    own: set[bytes] = set()
    computed = strange = 0
    for message in records(servers, embeddings):
        if message.value() is None:  # a tombstone
            continue
        embedding = Embedding.FromString(message.value() or b"")
        if embedding.origin == COMPUTED:
            computed_once.add(embedding.fingerprint)
        if embedding.job != job:
            continue
        place = (embedding.source_topic, embedding.source_partition, embedding.source_offset)
        value = sent.get(place)
        strange += message.key() != embedding.post_id.encode() or not names(value or b"", embedding.post_id)
        fingerprints.add(embedding.fingerprint)
        if embedding.origin == COMPUTED:
            computed += 1
            own.add(embedding.fingerprint)
        counts[place] += 1
    embedded = set(counts)
    turned_down: set[Place] = set()
    for message in records(servers, rejected):
        headers = {name: value for name, value in message.headers() or [] if isinstance(value, bytes)}
        topic = headers["manyray-topic"].decode()
        is_of = headers["manyray-ray"].decode() == ray and headers.get("manyray-job", b"").decode() == job
        # What ingest rejects is rejected in every version.
        is_of = is_of and headers.get("manyray-version", version.encode()).decode() == version
        if topic in posts and is_of:
            place = (topic, int(headers["manyray-partition"]), int(headers["manyray-offset"]))
            strange += sent.get(place) != message.value()
            turned_down.add(place)
            counts[place] += 1
    for place in [place for place, value in sent.items() if value is None and place not in turned_down]:
        del sent[place]  # it deletes a post, and is none
    return {
        "posts": len(sent),
        "embedded": len(embedded),
        "rejected": len(turned_down),
        "computed": computed,
        "recomputed": computed - len(own),
        "lost": len(sent.keys() - counts.keys()),
        "doubled": sum(count > 1 for count in counts.values()),
        "contradicted": len(embedded & turned_down),
        "strange": strange + len(counts.keys() - sent.keys()),
        "never_computed": len(fingerprints - computed_once),
    }


def main() -> int:
    """Verify and print."""
    parser = argparse.ArgumentParser(description="check that nothing was lost or doubled")
    parser.add_argument("servers", help="HOST:PORT of a broker")
    parser.add_argument("embeddings", help="topic of the embeddings of one version")
    parser.add_argument("--posts", nargs="+", default=["posts"], help="topics of the posts")
    parser.add_argument("--rejected", default="rejected", help="topic of the rejected posts")
    parser.add_argument("--job", default="", help="a replay of the whole of these topics, none of which ingest reads")
    arguments = parser.parse_args()
    counts = verify(arguments.servers, arguments.posts, arguments.embeddings, arguments.rejected, arguments.job)
    print(json.dumps(counts))
    return 1 if any(counts[wrong] for wrong in ("lost", "doubled", "contradicted", "strange")) else 0


if __name__ == "__main__":
    sys.exit(main())
