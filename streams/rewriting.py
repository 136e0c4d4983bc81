"""Removing what was forgotten from `vectors`: Kafka deletes records from the begin only, so what stays is written anew.

Of a partition all that lies up to the last record with a forgotten vector is copied to its end, without such vectors,
and then deleted. A table that is behind learns the same either way: the copy begins with what was to be forgotten.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field

from confluent_kafka import KafkaException, Message, TopicPartition

from schemas.content import split_fingerprints
from schemas.errors import Fatal
from schemas.internal_pb2 import Vectors
from streams import clients, clock
from streams.failpoints import reach
from streams.learned import Learned
from streams.settings import Settings
from streams.topics import Topics
from streams.transactions import VECTOR_BYTES_MAX, StageProducer

READ_S = 30.0
"""Without a record, where there are some."""
DELETE_S = 30.0
_AT_ONCE = 32
_TOLD_AT_ONCE = 32_768
"""Half a megabyte of fingerprints a record."""


@dataclass(slots=True)
class Scan:
    """What a partition of `vectors` holds, from `low` on.

    held: how many vectors of those asked for lie before what tells to forget them. last: the offset of the last record
    with one, -1 if there is none. again: those that came after that, as a post with the content did. told: where each
    content was last told to be forgotten, whoever asked for it.
    """

    low: int = 0
    end: int = 0
    records: int = 0
    held: int = 0
    last: int = -1
    again: set[bytes] = field(default_factory=set[bytes])
    told: dict[bytes, int] = field(default_factory=dict[bytes, int])


def scan(settings: Settings, topics: Topics, partition: int, fingerprints: Set[bytes]) -> Scan:
    """Read a partition from begin to end, in search of some vectors.

    Raises:
        Retry: the brokers did not answer.
        Fatal: it was not read in time.
    """
    found, at = Scan(), list[tuple[bytes, int]]()
    # The end behind what an open transaction hides: its own end is waited for.
    with closing(clients.reader(settings, committed=False)) as reader:
        found.low, found.end = clients.watermarks(reader, topics.vectors, partition)
    for message in _read(settings, topics, partition, found.low, found.end):
        offset, learned = message.offset() or 0, Learned.of(message.value(), topics.version)
        found.records += 1
        found.told |= dict.fromkeys(learned.forgotten, offset)
        at += [(fingerprint, offset) for fingerprint in fingerprints & learned.vectors.keys()]
    held = [offset for fingerprint, offset in at if offset < found.told.get(fingerprint, -1)]
    found.held, found.last = len(held), max(held, default=-1)
    found.again = {fingerprint for fingerprint, offset in at if offset > found.told.get(fingerprint, -1)}
    return found


def rewrite(
    settings: Settings,
    topics: Topics,
    partition: int,
    found: Scan,
    producer: StageProducer,
    *,
    on_progress: Callable[[float], object],
) -> int:
    """Copy what stays of a partition up to `found.last` to its end, and delete all that; returns the vectors copied.

    Ended early, some of it is there twice, which harms nobody. `on_progress` is told the share that is done.

    Raises:
        Retry: the brokers did not answer, or did not take it: do it again, from `scan` on.
        Fatal: records may not be deleted.
    """
    cut, count, size_bytes = found.last + 1, 0, 0
    told = [fingerprint for fingerprint, offset in found.told.items() if offset < cut]
    values = [
        Vectors(version=topics.version, forgotten=b"".join(told[at : at + _TOLD_AT_ONCE])).SerializeToString()
        for at in range(0, len(told), _TOLD_AT_ONCE)
    ]
    for message in _read(settings, topics, partition, found.low, cut):
        stays = _without(message, topics.version, found.told)
        if not stays.fingerprints:
            continue
        values.append(stays.SerializeToString())
        count += len(split_fingerprints(stays.fingerprints))
        size_bytes += len(values[-1])
        if size_bytes >= VECTOR_BYTES_MAX:
            _write(topics, partition, values, producer)
            size_bytes, values = 0, []
            on_progress(((message.offset() or 0) - found.low) / (cut - found.low))
    _write(topics, partition, values, producer)
    reach("forget.rewritten")
    admin = clients.admin_client(settings)  # while it is there, its futures are
    for future in admin.delete_records([TopicPartition(topics.vectors, partition, cut)]).values():
        try:
            future.result(DELETE_S)
        except (KafkaException, TimeoutError) as error:
            why = error.args[0].str() if isinstance(error, KafkaException) else f"no answer in {DELETE_S:.0f} s"
            raise Fatal(
                f"records of {topics.vectors}/{partition} before {cut} could not be deleted: {why}; see that the ACLs "
                "grant Delete, and do it again"
            ) from None
    on_progress(1.0)
    return count


def _write(topics: Topics, partition: int, values: Sequence[bytes], producer: StageProducer) -> None:
    """One transaction, which is open for no longer than that takes."""
    producer.begin()
    for value in values:
        producer.produce(topics.vectors, value, partition=partition)
    producer.commit()


def _without(message: Message, version: str, told: dict[bytes, int]) -> Vectors:
    """A record without the vectors that a later one tells to forget."""
    offset, whole = message.offset() or 0, Vectors.FromString(message.value() or b"")
    vectors = Learned.of(message.value(), version).vectors
    stay = {each: vector for each, vector in vectors.items() if offset > told.get(each, -1)}
    return Vectors(
        version=version,
        dims=whole.dims,
        bits=whole.bits,
        copied=True,
        fingerprints=b"".join(stay),
        vectors=b"".join(stay.values()),
    )


def _read(settings: Settings, topics: Topics, partition: int, start: int, end: int) -> Iterator[Message]:
    """The records of a partition from `start` up to, and without, `end`."""
    place = f"{topics.vectors}/{partition}"
    with closing(clients.reader(settings)) as reader:
        reader.assign([TopicPartition(topics.vectors, partition, start)])
        at, deadline_s = start, clock.monotonic_s() + READ_S
        while at < end:
            for message in reader.consume(_AT_ONCE, 1.0):
                if message.error() is not None and (why := clients.why_unreadable(message)):
                    raise why
                at = message.offset() or 0
                if message.error() is None and at < end:
                    at, deadline_s = at + 1, clock.monotonic_s() + READ_S
                    yield message
            if clock.monotonic_s() > deadline_s:
                raise Fatal(f"{place} was not read past {at} of {end} in {READ_S:.0f} s: do it again")
