"""A consumer group member whose progress is committed inside transactions: shared by ingest and encode."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from schemas.errors import Fatal, Retry
from streams import clients
from streams.lag import LagReporter
from streams.metrics import Metrics
from streams.settings import Settings

_log = logging.getLogger("manyray.group")

COMMITTED_TIMEOUT_S = 30.0
Place = tuple[str, int]


@dataclass(slots=True)
class Member:
    """One member: reads batches, knows what it owns, rewinds after a failed transaction.

    `on_revoke` runs before partitions go to another member, while their offsets may still be committed;
    `on_lost` when they are gone already. Used by one thread, in whose `read` both run.
    """

    consumer: Consumer
    lag: LagReporter
    on_revoke: Callable[[], None]
    on_lost: Callable[[], None]
    owned: set[Place] = field(default_factory=set[Place])
    positions: dict[Place, int] = field(default_factory=dict[Place, int])
    revocations: int = 0

    @classmethod
    def join(
        cls,
        settings: Settings,
        group: str,
        topics: list[str],
        metrics: Metrics,
        *,
        on_revoke: Callable[[], None] = lambda: None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> "Member":
        """Subscribe to topics as a member of a group."""
        consumer = clients.consumer(settings, group, enable_partition_eof=True)
        member = cls(consumer, LagReporter(consumer, metrics), on_revoke, on_lost)
        consumer.subscribe(topics, on_assign=member._assigned, on_revoke=member._revoked, on_lost=member._lost)
        return member

    def read(self, records_max: int, wait_s: float) -> list[Message]:
        """Up to `records_max` records, waiting at most `wait_s` for them.

        Raises:
            Fatal: a topic is gone or may not be read.
        """
        records: list[Message] = []
        gone = self.revocations
        for message in self.consumer.consume(records_max, wait_s):
            error = message.error()
            if error is None:
                records.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                self.lag.reached_end(_topic(message), message.partition() or 0, message.offset() or 0)
            elif error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
                raise Fatal(f"topic {message.topic()} is gone: run `manyray topics create`")
            elif error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
                raise Fatal(f"not allowed to read: {error.str()}; grant it in the ACLs")
            elif error.fatal():
                raise Fatal(f"reading cannot go on: {error.str()}; Kafka 4.0 or newer is needed")
            else:
                _log.warning("reading: %s", error.str())
        if gone != self.revocations:
            # Partitions went to another member during this very call: what was read of them is theirs to read again.
            records = [record for record in records if (_topic(record), record.partition()) in self.owned]
        return records

    def committed(self, place: Place) -> TopicPartition:
        """The committed offset of a partition, with its metadata; pending transactions are waited for.

        Raises:
            Retry: the brokers did not answer in time.
        """
        try:
            return self.consumer.committed([TopicPartition(*place)], COMMITTED_TIMEOUT_S)[0]
        except KafkaException as error:
            raise Retry(f"committed offset of {place[0]}/{place[1]}: {error.args[0].str()}") from None

    def rewind(self) -> None:
        """Go back to what is committed, in every partition owned."""
        for place in self.owned:
            committed = self.committed(place)
            offset = OFFSET_BEGINNING if committed.offset == OFFSET_INVALID else committed.offset
            self.positions[place] = committed.offset
            try:
                self.consumer.seek(TopicPartition(*place, offset))
            except KafkaException as error:
                raise Retry(f"seek in {place[0]}/{place[1]}: {error.args[0].str()}") from None

    def processed(self, offsets: dict[Place, int]) -> None:
        """Note the next offsets to process, for the lag."""
        self.positions.update(offsets)

    def report_lag(self) -> None:
        """Set the lag metrics, now and then."""
        self.lag.report(self.positions)

    def close(self) -> None:
        """Leave the group at once, so that others take over without waiting."""
        self.consumer.close()

    def _assigned(self, _consumer: Any, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self.owned.add((partition.topic, partition.partition))
            self.positions[partition.topic, partition.partition] = -1
        self.lag.metrics.partitions_owned.set(len(self.owned))
        _log.info("ready: owns %d partitions", len(self.owned))

    def _revoked(self, _consumer: Any, partitions: list[TopicPartition]) -> None:
        self.on_revoke()
        self._forget(partitions)

    def _lost(self, _consumer: Any, partitions: list[TopicPartition]) -> None:
        self.on_lost()
        self._forget(partitions)

    def _forget(self, partitions: list[TopicPartition]) -> None:
        self.revocations += 1
        for partition in partitions:
            place = (partition.topic, partition.partition)
            self.owned.discard(place)
            self.positions.pop(place, None)
            self.lag.forget(*place)
        self.lag.metrics.partitions_owned.set(len(self.owned))
        _log.info("gave up %d partitions, owns %d", len(partitions), len(self.owned))


def _topic(message: Message) -> str:
    return message.topic() or ""
