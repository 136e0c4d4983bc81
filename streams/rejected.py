"""Records of the `rejected` topic: a post as it was written, and why it has no embedding."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.chunk import Place
from schemas.errors import Reject, Retry
from schemas.post import Post, encode_post
from streams import clients
from streams.settings import Settings
from streams.topics import Topics
from streams.transactions import StageProducer

READ_TIMEOUT_S = 10.0
"""For one record that is read back."""
BYTES_MAX = clients.MESSAGE_BYTES_MAX - 1024 * 1024
"""Of a post's key, value and headers, before compression: more, with our headers, is not written."""
READ_BACK_BYTES_MAX = BYTES_MAX
"""Of the records that are read back at once, beyond the last one: of the others a stand-in is kept."""
_AHEAD_MAX = 1_000
"""Offsets that are rather read past than sought across."""


class PostRecord(Protocol):
    """A post's record as it was read: Kafka's `Message`, or a row of a file that stands in for one."""

    # ruff: disable[D102] - as of `Message`
    def topic(self) -> str | None: ...
    def partition(self) -> int | None: ...
    def offset(self) -> int | None: ...
    def value(self) -> bytes | None: ...
    def key(self) -> Any: ...
    def headers(self) -> Any: ...
    def timestamp(self) -> tuple[int, int]: ...

    # ruff: enable[D102]


@dataclass(frozen=True, slots=True)
class Original:
    """A post's record as it lies on its topic."""

    topic: str
    partition: int
    offset: int
    posted_ms: int
    value: bytes | None
    key: bytes | None
    headers: Sequence[Any] = ()
    """Pairs of a name and a value."""
    job: str = ""
    """The replay that it was read for, if it was."""

    @property
    def size_bytes(self) -> int:
        """Of its key, value and headers."""
        return len(self.value or b"") + self.beside_bytes

    @property
    def beside_bytes(self) -> int:
        """Of its key and headers."""
        return len(self.key or b"") + sum(len(name.encode()) + len(value or b"") for name, value in self.headers)

    @property
    def place(self) -> tuple[str, int, int]:
        """Topic, partition and offset."""
        return self.topic, self.partition, self.offset

    @classmethod
    def of(cls, message: PostRecord, job: str = "") -> "Original":
        """The record that was read, for a replay if one is named.

        Without its headers where one's name is no UTF-8, which a header says.
        """
        headers = headers_of(message)
        return cls(
            message.topic() or "",
            message.partition() or 0,
            message.offset() or 0,
            message.timestamp()[1],
            message.value(),
            message.key(),
            [("manyray-original", b"headers_unreadable")] if headers is None else headers,
            job,
        )

    @classmethod
    def rebuilt(cls, post: Post, topic: str, partition: int, offset: int, posted_ms: int) -> "Original":
        """A stand-in for a record that may be gone: the post as JSON, its id as the key; a header says what it is."""
        headers = [("manyray-original", b"gone")]
        return cls(topic, partition, offset, posted_ms, encode_post(post), post.id.encode(), headers)


def headers_of(message: PostRecord) -> list[Any] | None:
    """A record's headers, pairs of a name and a value; None where a name is no UTF-8, which Kafka's brokers take."""
    try:
        headers = message.headers()
        object()  # confluent-kafka leaves the error behind, for the next call that looks; names are missing until then
    except (SystemError, UnicodeDecodeError):
        return None
    return list(headers or [])


def send_rejected(producer: StageProducer, topics: Topics, original: Original, cause: Reject) -> None:
    """Produce a record to the topic of rejected posts: bytes, key and headers untouched, the reason in more headers.

    Of a record above `BYTES_MAX` the value is left out, and key and headers too if need be, which a header says.
    """
    ours = {
        "manyray-ray": topics.ray,
        "manyray-reason": cause.reason,
        "manyray-detail": cause.detail,
        "manyray-topic": original.topic,
        "manyray-partition": str(original.partition),
        "manyray-offset": str(original.offset),
        "manyray-posted-ms": str(original.posted_ms),
    }
    if original.job:
        ours["manyray-job"] = original.job
    if topics.version:  # else it has no embedding in any
        ours["manyray-version"] = topics.version
    value, key, headers = original.value, original.key, original.headers
    if original.size_bytes > BYTES_MAX:  # compressed it came through, and it lies at its place still
        value, ours["manyray-original"] = None, "too_large"
    if original.beside_bytes > BYTES_MAX:
        key, headers = None, []
    # Its own time goes into a header: as the record's, an old one would be deleted at once, a false one refused.
    told = [*headers, *((name, text.encode()) for name, text in ours.items())]
    producer.produce(topics.rejected, value, key=key, headers=told)


def read_back(settings: Settings, rebuilt: Sequence[Original]) -> dict[tuple[str, int, int], Original]:
    """The records that `rebuilt` stand for, by place, each read from its topic, or the stand-in itself if it is gone.

    Once what was read passes `READ_BACK_BYTES_MAX` the stand-ins of the rest are kept, which their header says.

    Raises:
        Retry: the brokers did not answer in time.
    """
    if not rebuilt:
        return {}
    found = {one.place: replace(one, headers=[("manyray-original", b"not_read")]) for one in rebuilt}
    size_bytes = 0
    with closing(clients.reader(settings)) as reader:
        for one in _read_all(reader, sorted(rebuilt, key=lambda one: one.place)):
            found[one.place] = one
            size_bytes += one.size_bytes
            if size_bytes > READ_BACK_BYTES_MAX:
                break
    return found


def _read_all(reader: Consumer, rebuilt: Sequence[Original]) -> Iterator[Original]:
    """As `read_back`, one at a time, of records in the order of their places."""
    try:
        listed = reader.list_topics(timeout=READ_TIMEOUT_S).topics
    except KafkaException as error:
        raise Retry(f"posts could not be read back: {error.args[0].str()}") from None
    for place, some in groupby(rebuilt, key=lambda one: one.place[:2]):
        # librdkafka would look for a topic that is gone, or not ours to read, for half a minute.
        there = place[0] in listed and place[1] in listed[place[0]].partitions
        if there:
            yield from _read_place(reader, place, some)
        else:
            yield from some


def _read_place(reader: Consumer, place: Place, rebuilt: Iterable[Original]) -> Iterator[Original]:
    """As `_read_all`, for records of one partition."""
    message: Message | None = None
    for one in rebuilt:
        at = -_AHEAD_MAX if message is None else message.offset() or 0
        if one.offset - at >= _AHEAD_MAX:
            reader.assign([TopicPartition(*place, one.offset)])
            message, at = None, -1
        while at < one.offset:
            message = _next(reader, place)
            if message is None:  # nothing from here on: what is sought is gone
                break
            at = message.offset() or 0
        yield Original.of(message) if message is not None and at == one.offset else one


def _next(reader: Consumer, place: Place) -> Message | None:
    """The next record; None at the end, or where we may not read."""
    message = reader.poll(READ_TIMEOUT_S)
    if message is None:
        raise Retry(f"a post of {place[0]}/{place[1]} could not be read back in {READ_TIMEOUT_S:.0f} s")
    error = message.error()
    if error is None:
        return message
    if error.code() in (KafkaError._PARTITION_EOF, KafkaError.TOPIC_AUTHORIZATION_FAILED):
        return None
    raise Retry(f"a post of {place[0]}/{place[1]} could not be read back: {error.str()}")
