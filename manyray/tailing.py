"""`manyray tail`: embeddings as they arrive, a line each."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any, Literal

import msgspec
from confluent_kafka import Consumer, TopicPartition

from manyray.client import Client
from manyray.epochs import epochs_of
from manyray.rays import find_embeddings_topic, open_control
from manyray.subscription import Batch, Subscription, read_batch
from schemas.embedding import origin_name, vectors_of
from schemas.public_pb2 import Embedding
from streams import clients
from streams.control import ray_in
from streams.settings import Settings
from streams.topics import list_partitions

Start = Literal["earliest", "latest"]

_RECORDS = 100
_WAIT_S = 0.2
_NUMBERS = 4


def tail_ray(
    settings: Settings, ray: str, *, start: Start, limit: int | None, as_json: bool, group: str | None
) -> None:
    """Write embeddings to stdout, endlessly or up to `limit`; with a group what was written is committed.

    Raises:
        Fatal: there is no such ray, or its topic cannot be read.
    """
    try:
        if group is None:
            _write(_read_all(settings, ray, start), limit, as_json)
            return
        with Client(settings) as client, client.subscribe(ray, group, start=start) as subscription:
            _write(subscription, limit, as_json)
    except BrokenPipeError:  # `manyray tail textray | head`: the reader has had enough, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(batches: Iterator[Batch], limit: int | None, as_json: bool) -> None:
    left = limit
    while True:
        if left is not None and isinstance(batches, Subscription):
            batches.batch_posts = min(_RECORDS, left)  # a batch is committed whole: so it may hold no more
        batch = next(batches, None)
        if batch is None:
            return
        shown = batch.embeddings[:left]
        sys.stdout.writelines(f"{_json(one) if as_json else _line(one)}\n" for one in shown)
        sys.stdout.writelines(_deleted(post_id, as_json) for post_id in dict.fromkeys(batch.deleted_ids))
        sys.stdout.flush()
        if left is not None:
            left -= len(shown)
            if left <= 0:
                return


def _read_all(settings: Settings, ray: str, start: Start) -> Iterator[Batch]:
    """All partitions of a ray from their begin or end, outside any group; of a bare name what it means from then on."""
    topic, is_bare = find_embeddings_topic(settings, ray), "@" not in ray
    with ExitStack() as held:
        consumer = held.enter_context(closing(clients.reader(settings)))
        control = held.enter_context(closing(open_control(settings, ray))) if is_bare else None
        consumer.assign(
            [_place(consumer, topic, partition, start) for partition in range(list_partitions(settings)[topic])]
        )
        while True:
            batch = read_batch(consumer.consume(_RECORDS, _WAIT_S), of_bare_name=is_bare)
            if batch is not None:
                yield batch
            if control is not None and control.hear():
                last = epochs_of(ray, ray_in(control))[-1]
                if last.topic != topic:
                    topic = last.topic
                    sys.stderr.write(f"manyray: {ray} means version {last.version} from here on\n")
                    consumer.assign([TopicPartition(topic, *place) for place in last.starts.items()])


def _place(consumer: Consumer, topic: str, partition: int, start: Start) -> TopicPartition:
    low, high = clients.watermarks(consumer, topic, partition)
    return TopicPartition(topic, partition, low if start == "earliest" else high)


def _line(embedding: Embedding) -> str:
    vector = vectors_of([embedding])[0]
    numbers = " ".join(f"{number:+.4f}" for number in vector[:_NUMBERS])
    more = f" ... {embedding.dims} numbers" if embedding.dims > _NUMBERS else ""
    return f"{embedding.post_id}\t[{numbers}{more}]\t{origin_name(embedding.origin)}\t{_latency_ms(embedding)} ms"


def _json(embedding: Embedding) -> str:
    row: dict[str, Any] = {
        "id": embedding.post_id,
        "ray": embedding.ray,
        "version": embedding.version,
        "origin": origin_name(embedding.origin),
        "latency_ms": _latency_ms(embedding),
        "posted_ms": embedding.posted_ms,
        "fingerprint": embedding.fingerprint.hex(),
        "source": [embedding.source_topic, embedding.source_partition, embedding.source_offset],
        "job": embedding.job,
        "vector": vectors_of([embedding])[0].tolist(),
    }
    return msgspec.json.encode(row).decode()


def _deleted(post_id: str, as_json: bool) -> str:
    return msgspec.json.encode({"id": post_id, "deleted": True}).decode() + "\n" if as_json else f"{post_id}\tdeleted\n"


def _latency_ms(embedding: Embedding) -> int:
    """From the post's record to the embedding's."""
    return embedding.embedded_ms - embedding.posted_ms
