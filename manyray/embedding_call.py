"""Waiting for the embeddings of some posts, without a consumer group."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from confluent_kafka import Consumer, TopicPartition

from manyray.rays import find_embeddings_topic
from manyray.subscription import read_batch
from schemas.errors import Fatal, Reject, Retry
from schemas.vectors import Matrix
from streams import clients, clock
from streams.rejected import headers_of
from streams.settings import Settings
from streams.topics import Topics, list_partitions

_RECORDS = 1_000
_WAIT_S = 0.05


def collect(settings: Settings, ids: Sequence[str], publish: Callable[[], object], timeout_s: float) -> Matrix:
    """Call `publish`, which sends posts of these ids, and return their vectors in the order of `ids`: shape (n, dims).

    Raises:
        Reject: a post was rejected; the first is named by its index.
        Retry: not all came within `timeout_s`.
        Fatal: a topic is missing.
    """
    topic = find_embeddings_topic(settings, settings.ray)
    rejected, version = Topics.of(settings, "").rejected, topic.rpartition(".")[2].encode()
    consumer = clients.reader(settings)
    try:
        # Where the topics end before the posts are sent: what is made of them comes after.
        consumer.assign(_ends(settings, consumer, (topic, rejected)))
        deadline_s = clock.monotonic_s() + timeout_s
        publish()
        index_of = {post_id: index for index, post_id in enumerate(ids)}
        rows: dict[int, Matrix] = {}
        refused: dict[int, Reject] = {}
        while len(rows) + len(refused) < len(ids):
            if clock.monotonic_s() > deadline_s:
                missing = len(ids) - len(rows) - len(refused)
                raise Retry(
                    f"{missing} of {len(ids)} texts had no embedding after {timeout_s:.0f} s: see whether ingest, "
                    "dedup and encode run with these settings (`manyray up`), or raise timeout_s"
                )
            messages = consumer.consume(_RECORDS, _WAIT_S)
            batch = read_batch(message for message in messages if message.error() or message.topic() == topic)
            for post_id, row in zip(batch.ids, batch.vectors, strict=True) if batch else ():
                if (index := index_of.get(post_id)) is not None:
                    rows[index] = row
            for message in messages:
                if not message.error() and message.topic() == rejected:
                    headers = {name: value for name, value in headers_of(message) or [] if isinstance(value, bytes)}
                    index = index_of.get((message.key() or b"").decode("utf-8", "replace"))
                    is_ours = headers.get("manyray-ray") == settings.ray.encode()
                    is_ours = is_ours and headers.get("manyray-version", version) == version  # none: of every version
                    if index is not None and is_ours:
                        refused[index] = _reason(headers, index)
    finally:
        consumer.close()
    if refused:
        raise refused[min(refused)]
    return np.stack([rows[index] for index in range(len(ids))])


def _ends(settings: Settings, consumer: Consumer, topics: Sequence[str]) -> list[TopicPartition]:
    partitions = list_partitions(settings)
    places: list[TopicPartition] = []
    for topic in topics:
        if topic not in partitions:
            raise Fatal(f"topic {topic} is missing: run `manyray topics create`")
        for partition in range(partitions[topic]):
            _, end = clients.watermarks(consumer, topic, partition)
            places.append(TopicPartition(topic, partition, end))
    return places


def _reason(headers: Mapping[str, bytes], index: int) -> Reject:
    reason = headers.get("manyray-reason", b"malformed").decode()
    return Reject(reason, f"text {index}: {headers.get('manyray-detail', b'').decode('utf-8', 'replace')}")
