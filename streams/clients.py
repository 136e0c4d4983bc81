"""Kafka clients: what every consumer and producer of Manyray is configured with, and how users' properties reach it."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.errors import Fatal, Retry
from streams import clock
from streams.broker import read_running
from streams.settings import Settings

_log = logging.getLogger("manyray.kafka")
_connections = logging.getLogger("manyray.connections")

MESSAGE_BYTES_MAX = 64 * 1024 * 1024
"""Of one record before compression: only a rejected post comes near."""

IDLE_MS = 5_000
RECONNECT_MS_MAX = 1_000
WATERMARKS_TIMEOUT_S = 30.0
_AWAIT_PAUSE_S = 0.5
_FULL_WAIT_S = 0.05

Made = TypeVar("Made", AdminClient, Consumer, Producer)

_OURS = frozenset(
    "bootstrap.servers metadata.broker.list group.id group.instance.id transactional.id enable.idempotence "
    "isolation.level enable.auto.commit enable.auto.offset.store auto.offset.reset acks request.required.acks "
    "partitioner group.protocol message.max.bytes transaction.timeout.ms delivery.timeout.ms message.timeout.ms "
    "delivery.report.only.error queue.buffering.max.kbytes".split()
)
"""Properties that exactly once, or a setting of ours, depends on."""

_REFUSALS = {KafkaError._AUTHENTICATION, KafkaError._SSL}


def bootstrap_servers(settings: Settings) -> str:
    """The brokers: those set, else the embedded broker that runs on the data directory.

    Raises:
        Fatal: none is set and none runs.
    """
    found = settings.bootstrap_servers or read_running(settings.data_dir)
    if not found:
        raise Fatal(
            f"no broker runs on data directory {settings.data_dir}: "
            "start one with `manyray up`, or name yours with --bootstrap-servers"
        )
    return found


def no_broker(settings: Settings, heard: Sequence[KafkaError] = ()) -> Fatal:
    """The error for brokers that do not answer; `heard` is what librdkafka was told meanwhile."""
    for error in heard:
        if error.code() in _REFUSALS:
            return Fatal(
                f"the brokers at {bootstrap_servers(settings)} do not let us in ({error.str()}): "
                "check security.protocol, sasl.* and ssl.* in [kafka]"
            )
    return Fatal(
        f"no Kafka broker answers at {bootstrap_servers(settings)}: start it, or set bootstrap_servers to one that runs"
    )


def admin_client(settings: Settings, on_error: Callable[[KafkaError], None] | None = None) -> AdminClient:
    """An admin client; it connects when first used. `on_error` gets what goes wrong with its connections."""
    return _made(AdminClient, _common(settings) | ({"error_cb": on_error} if on_error else {}))


def await_brokers(settings: Settings, wait_s: float, stop: threading.Event) -> None:
    """Wait until a broker answers, or refuses us, `wait_s` at most: what follows says what is wrong then.

    Raises:
        Retry: `stop` was set meanwhile.
    """
    heard: list[KafkaError] = []
    admin = admin_client(settings, heard.append)
    deadline_s = clock.monotonic_s() + wait_s
    told = False
    while not stop.is_set():
        try:
            admin.list_topics(timeout=1.0)
        except KafkaException:
            admin.poll(0)  # lets it say what it heard from the brokers
        else:
            return
        if clock.monotonic_s() > deadline_s or any(error.code() in _REFUSALS for error in heard):
            return
        if not told:
            told = True
            _connections.warning("no broker answers: waiting for one, %.0f s at most", wait_s)
        heard.clear()
        stop.wait(_AWAIT_PAUSE_S)
    raise Retry(f"no Kafka broker answered at {bootstrap_servers(settings)}")


def consumer(
    settings: Settings, group: str, *, on_statistics: Callable[[str], None] | None = None, **properties: Any
) -> Consumer:
    """A consumer of committed records only that never commits by itself.

    `on_statistics` gets librdkafka's own, as JSON, where `statistics_interval_ms` is given.

    It joins by Kafka's new group protocol (KIP-848), whose rebalances move only what has to move.
    """
    return _made(
        Consumer,
        {
            "group.protocol": "consumer",
            "fetch.message.max.bytes": 4_194_304,
            "queued.max.messages.kbytes": 32_768,
            "max.poll.interval.ms": 600_000,
            **_common(settings),
            **({"stats_cb": on_statistics} if on_statistics else {}),
            "group.id": group,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            **_spelt(properties),
        },
    )


def reader(settings: Settings, *, committed: bool = True, **properties: Any) -> Consumer:
    """A consumer outside any group, for reading partitions that the caller assigns."""
    return _made(
        Consumer,
        {
            **_common(settings),
            "group.id": "manyray.reader",  # librdkafka wants one even if nothing is committed
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
            "fetch.message.max.bytes": 4_194_304,
            "queued.max.messages.kbytes": 16_384,
            "fetch.queue.backoff.ms": 10,  # and not the second for which librdkafka rests when that is full
            **_spelt(properties),
        },
    )


def why_unreadable(message: Message) -> Fatal | None:
    """Why a consumer cannot go on after it was given this error; None if librdkafka mends it by itself."""
    error = message.error()
    assert error is not None
    if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
        return Fatal(f"topic {message.topic()} is gone: run `manyray topics create`")
    if error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
        return Fatal(f"not allowed to read: {error.str()}; grant it in the ACLs")
    if error.code() in (KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG):
        place = f"{message.topic()}/{message.partition()} from offset {message.offset()} on"
        return Fatal(f"{place} holds a batch that cannot be read ({error.str()}): delete the records up to it")
    if error.fatal() or error.code() == KafkaError._FATAL:  # in a message confluent-kafka forgets that it is
        return Fatal(
            f"reading cannot go on: {error.str()}; check the rights on the group, and that Kafka is 4.0 or newer"
        )
    return None


def watermarks(
    reader: Consumer, topic: str, partition: int, *, timeout_s: float = WATERMARKS_TIMEOUT_S
) -> tuple[int, int]:
    """The offset of the oldest record of a partition, and that of the next one to be written, as `reader` may see it.

    Raises:
        Retry: the brokers did not answer in time.
    """
    try:
        return reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=timeout_s)
    except KafkaException as error:
        raise Retry(f"offsets of {topic}/{partition}: {error.args[0].str()}") from None


def first_from(reader: Consumer, start: TopicPartition, *, timeout_s: float = WATERMARKS_TIMEOUT_S) -> tuple[int, bool]:
    """The offset of the first record from `start` on, or, with False, of the end if there is none before it.

    Raises:
        Retry: the brokers did not answer in time, or it cannot be read.
    """
    reader.assign([start])
    try:
        message = reader.poll(timeout_s)
    finally:
        reader.unassign()
    place = f"{start.topic}/{start.partition}"
    if message is None:
        raise Retry(f"records of {place}: none came in {timeout_s:.0f} s")
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise Retry(f"records of {place}: {error.str()}")
    return message.offset() or 0, error is None


def gone(place: str, offset: int) -> Fatal:
    """The error for records that are gone before they were read; `offset` is that of the first."""
    return Fatal(
        f"{place} no longer holds offset {offset}, the next to be read: retention removed what nobody read, or the "
        "topic was made anew; to go on with what is there set accept_gaps = true"
    )


def producer(
    settings: Settings,
    transactional_id: str | None = None,
    on_failed: Callable[[KafkaError | None, Message], None] | None = None,
) -> Producer:
    """An idempotent producer, transactional if it is given an id; `on_failed` hears of records that were not taken.

    Keys go to the partition that Java's clients choose (murmur2), so that both find a key in the same place.
    """
    properties: dict[str, Any] = {
        "compression.type": "lz4",
        "linger.ms": 5,
        "batch.size": 1_000_000,
        "queue.buffering.max.kbytes": 65_536,
        "delivery.report.only.error": True,
        **_common(settings),
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "message.max.bytes": MESSAGE_BYTES_MAX,
    }
    if transactional_id is not None or on_failed is not None:  # a stage's, which builds it anew and tries again
        properties["delivery.timeout.ms"] = settings.transaction_timeout_ms
    if transactional_id is not None:
        properties["transactional.id"] = transactional_id
        properties["transaction.timeout.ms"] = settings.transaction_timeout_ms
        # Sending offsets to a coordinator that is gone waits for any connection to change, whatever its time-out: so
        # one that has nothing to do is to be closed (librdkafka #5456, #5511).
        properties.setdefault("connections.max.idle.ms", IDLE_MS)
        # The coordinator's is opened again at once, but not sooner after the opening before than a time that doubles
        # up to this: by default 10 s, which is longer than it lasts, so the first post after a quiet minute would wait.
        properties.setdefault("reconnect.backoff.max.ms", RECONNECT_MS_MAX)
    if on_failed is not None:
        properties["on_delivery"] = on_failed  # of failures only, as set above
    return _made(Producer, properties)


def produce(producer: Producer, topic: str, value: bytes | None, **record: Any) -> None:
    """Queue a record; a full queue is waited for: it ends, as what waits is delivered or fails after its time-out.

    Raises:
        KafkaException: the record is not taken, or the producer cannot go on.
    """
    while True:
        try:
            producer.produce(topic, value, **record)
        except BufferError:
            producer.poll(_FULL_WAIT_S)
        else:
            return


def _spelt(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments as librdkafka's properties, none of which has an underscore."""
    return {name.replace("_", "."): value for name, value in properties.items()}


def _made(kind: Callable[[dict[str, Any]], Made], properties: dict[str, Any]) -> Made:
    try:
        return kind(properties)
    except KafkaException as error:  # its words name the property, which can only be one that was passed through
        raise Fatal(f"[kafka] holds what librdkafka does not take: {error.args[0].str()}") from None


def _common(settings: Settings) -> dict[str, Any]:
    for name in settings.kafka:
        if name in _OURS:
            raise Fatal(f"kafka property {name} is Manyray's own: remove it from [kafka]")
    return {
        "client.id": "manyray",
        **settings.kafka,
        "bootstrap.servers": bootstrap_servers(settings),
        "error_cb": _on_error,
        "logger": _log,
    }


def _on_error(error: KafkaError) -> None:
    """librdkafka's own events: it goes on by itself, so they are for the log; the operations fail on their own."""
    if error.code() == KafkaError._ALL_BROKERS_DOWN:
        _connections.warning("no broker can be reached, to be tried again")
    elif error.code() in _REFUSALS:
        _connections.warning("the brokers do not let us in, to be tried again: %s", error.str())
    else:
        _log.debug("%s", error.str())
