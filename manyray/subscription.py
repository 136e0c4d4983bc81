"""Subscribing: batches of embeddings, of which only what was consumed is committed."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from google.protobuf.message import DecodeError

from schemas.chunk import Place
from schemas.embedding import form_of, vectors_of
from schemas.errors import Fatal, ManyrayError, Retry
from schemas.public_pb2 import Embedding
from schemas.vectors import Matrix
from streams import clients, clock

_log = logging.getLogger("manyray.subscription")

_MOVED = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_MEMBER_EPOCH,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError._ASSIGNMENT_LOST,
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Some embeddings of one version, in the order in which they were read.

    ids: the posts' ids, n of them. vectors: float32 however they are stored, shape (n, dims), row i belongs to ids[i];
    binary ones are -1 and 1. embeddings: the whole records, for the rest (the bytes stored, origin, source, times).
    deleted_ids: posts whose deletion was read (tombstones).
    """

    ids: list[str]
    vectors: Matrix
    embeddings: list[Embedding]
    deleted_ids: list[str] = field(default_factory=list[str])
    version: str = ""
    """The one that all of it is of; vectors of two must never be compared."""

    def __len__(self) -> int:
        """How many embeddings it holds."""
        return len(self.ids)


class Subscription:
    """An endless iterator of `Batch`es, as a member of a consumer group.

    A batch counts as consumed, and is committed, when the next one is asked for, when a `with` block around the loop
    is left without an exception, or by `close`. If the loop's body raises, its batch is not committed and comes again,
    as does the last one of a loop that is left otherwise: so each embedding is seen at least once. Used by one thread;
    a batch that takes longer than 10 minutes is given to another member.
    """

    batch_posts: int
    """Most embeddings in a batch; may be changed between two."""

    def __init__(
        self,
        consumer: Consumer,
        topic: str,
        *,
        batch_posts: int = 500,
        wait_s: float = 0.2,
        idle_s: float | None = None,
        on_close: Callable[["Subscription"], None] = lambda _: None,
    ) -> None:
        """Use `Client.subscribe`."""
        self.topic = topic
        self._consumer = consumer
        self.batch_posts = batch_posts
        self._wait_s = wait_s
        self._idle_s = idle_s
        self._on_close = on_close
        self._handed_out: dict[Place, int] = {}
        """The offsets behind what was handed out, or is nobody's."""
        self._closed = False
        self._subscribe()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Commit the batch before, then wait for the next.

        Raises:
            Fatal: the topic is gone or may not be read, or holds a record that is no `Embedding`; it is closed then,
                and what was not committed comes again to the next one of the group.
            Retry: the batch before could not be committed; unless a later one is, it comes again.
            StopIteration: it is closed, or nothing arrived for `idle_s`.
        """
        idle_since_s = clock.monotonic_s()
        while not self._closed:
            self._commit()
            try:
                batch = self._read()
            except ManyrayError:
                self.close(commit=False)  # nothing of it reached the caller, and the next read would begin behind it
                raise
            if batch is not None:
                return batch
            if self._idle_s is not None and clock.monotonic_s() - idle_since_s > self._idle_s:
                break
        raise StopIteration

    def close(self, *, commit: bool = True) -> None:
        """Leave the group; unless `commit` is False the batch last handed out counts as consumed."""
        if self._closed:
            return
        self._closed = True
        try:
            if commit:
                self._commit()
        finally:
            self._on_close(self)
            self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; after an exception the batch last handed out is not committed."""
        self.close(commit=kind is None)

    def __del__(self) -> None:
        """Left without being closed, as by `break`: its batch comes again, and its partitions go to others at once."""
        if not getattr(self, "_closed", True):
            self.close(commit=False)

    def _subscribe(self) -> None:
        self._consumer.subscribe([self.topic])

    def _read(self) -> Batch | None:
        """What has come, if anything has within a moment; it counts as handed out."""
        return read_batch(self._consumer.consume(self.batch_posts, self._wait_s), self._handed_out)

    def _commit(self) -> None:
        if not self._handed_out:
            return
        offsets = [TopicPartition(*place, offset) for place, offset in self._handed_out.items()]
        self._handed_out.clear()
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as exception:
            error: KafkaError = exception.args[0]
            if error.code() not in _MOVED:
                raise Retry(f"consumed, but not committed, so it may come again: {error.str()}") from None
            _log.warning("partitions moved to another member: what was consumed last may come again")


def read_batch(
    messages: Iterable[Message], next_offsets: dict[Place, int] | None = None, *, of_bare_name: bool = False
) -> Batch | None:
    """Decode records of one topic; None if there are none. `next_offsets` gets, by place, the offset after the last.

    With `of_bare_name` those are left out that are of their version alone.

    Raises:
        Fatal: as `Subscription.__next__`.
    """
    embeddings: list[Embedding] = []
    deleted: list[str] = []
    for message in messages:
        if (error := message.error()) is not None:
            if why := clients.why_unreadable(message):
                raise why
            if error.code() != KafkaError._PARTITION_EOF:
                _log.debug("%s", error.str())
            continue
        if next_offsets is not None:
            next_offsets[message.topic() or "", message.partition() or 0] = (message.offset() or 0) + 1
        value = message.value()
        if value is None:
            deleted.append((message.key() or b"").decode("utf-8", "replace"))
        else:
            embedding = decode_embedding(message, value)
            if embedding.promoted or not of_bare_name:
                embeddings.append(embedding)
    if not embeddings and not deleted:
        return None
    if len({(embedding.dims, embedding.dtype, embedding.scale) for embedding in embeddings}) > 1:
        raise Fatal("vectors of several kinds in one topic: something other than Manyray writes to it")
    # A copy: what `vectors_of` gives can only be read, which PyTorch warns of.
    version = embeddings[0].version if embeddings else ""
    return Batch([one.post_id for one in embeddings], vectors_of(embeddings).copy(), embeddings, deleted, version)


def decode_embedding(message: Message, value: bytes) -> Embedding:
    """Decode one record of an embeddings topic.

    Raises:
        Fatal: it is no `Embedding`, or its vector is not as its dtype and dims say.
    """
    try:
        embedding = Embedding.FromString(value)
    except DecodeError:
        embedding = Embedding()
    if form_of(embedding) is None:
        where = f"{message.topic()}/{message.partition()} offset {message.offset()}"
        raise Fatal(
            f"record {where} is not an Embedding that can be read: something else wrote it, or this client is "
            "older than what did; to go on, move the group's offset past it"
        )
    return embedding
