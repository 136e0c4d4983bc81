"""A consumer group member whose progress is committed inside transactions: shared by ingest and encode."""

import json
import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
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

from schemas.chunk import Place
from schemas.errors import Fatal, Retry
from streams import clients, clock
from streams.health import JOINING
from streams.lag import LagReporter, OpenTransactions
from streams.metrics import Metrics
from streams.settings import Settings
from streams.transactions import StageProducer

_log = logging.getLogger("manyray.group")

COMMITTED_TIMEOUT_S = 10.0
ENDS_EVERY_S = 10.0
"""Between two commits of ends: the least that one costs is a transaction."""
RENEW_S = 43_200.0
"""Brokers forget an offset that was committed longer ago than they keep them, once a group has no members."""
STATISTICS_MS = 2_000
POLL_MS_MAX = 86_400_000
"""Between two reads, the most that librdkafka takes: one window may compute for as long as it likes, and what hangs is
ended by the watchdog."""


@dataclass(slots=True)
class Member:
    """One member: reads batches, knows what it owns, rewinds after a failed transaction.

    `on_revoke` runs before partitions go to another member, while their offsets may still be committed;
    `on_lost` when they are gone already. Used by one thread, in whose `read` and `close` both run.
    """

    consumer: Consumer
    topics: list[str]
    lag: LagReporter
    on_revoke: Callable[[], None]
    on_lost: Callable[[], None]
    owned: set[Place] = field(default_factory=set[Place])
    positions: dict[Place, int] = field(default_factory=dict[Place, int])
    """The next offset to process, of each partition owned."""
    revocations: int = 0
    name: str = ""
    """Of its version in the log; empty where the role has one member, whose partitions tell that it is ready."""
    waits_for: str = JOINING
    """Why it does not read all that it owns now; empty when it does. Any thread may ask."""
    _read_to: dict[Place, int] = field(default_factory=dict[Place, int])
    _ends: dict[Place, int] = field(default_factory=dict[Place, int])
    _ends_due_s: float = 0.0
    _is_closing: bool = False
    _renew_s: dict[Place, float] = field(default_factory=dict[Place, float])

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
        name: str = "",
    ) -> "Member":
        """Subscribe to topics as a member of a group."""
        # Where a new group begins, `_starts` says: a reset could only pass over records, which is not done silently.
        reset = "earliest" if settings.accept_gaps else "error"

        def told(statistics: str) -> None:  # called in `read`, when there is a member
            member._told(statistics)

        consumer = clients.consumer(
            settings,
            group,
            enable_partition_eof=True,
            auto_offset_reset=reset,
            statistics_interval_ms=STATISTICS_MS,
            on_statistics=told,
            max_poll_interval_ms=POLL_MS_MAX,
        )
        member = cls(
            consumer,
            topics,
            LagReporter(consumer, metrics, OpenTransactions(metrics.open_transaction_seconds)),
            on_revoke,
            on_lost,
            name=name,
        )
        consumer.subscribe(topics, on_assign=member._assigned, on_revoke=member._revoked, on_lost=member._lost)
        return member

    def read(self, records_max: int, wait_s: float) -> list[Message]:
        """Up to `records_max` records, waiting at most `wait_s` for them.

        Raises:
            Retry: the brokers did not say in time where to begin: `rewind`.
            Fatal: a topic, or a part of it that was not read yet, is gone; or it may not be read.
        """
        records: list[Message] = []
        gone = self.revocations
        for message in self.consumer.consume(records_max, wait_s):
            error = message.error()
            place, offset = (_topic(message), message.partition() or 0), message.offset() or 0
            if error is None:
                records.append(message)
                self._read_to[place] = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                self._ends[place] = offset
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise self._why_nowhere(place)
            elif why := clients.why_unreadable(message):
                raise why
            else:
                _log.warning("reading: %s", error.str())
        if gone != self.revocations:
            # Partitions went to another member during this very call: what was read of them is theirs to read again.
            records = [record for record in records if (_topic(record), record.partition()) in self.owned]
        return records

    def committed(self, places: Iterable[Place]) -> list[TopicPartition]:
        """The committed offsets of partitions, with their metadata; pending transactions are waited for.

        Raises:
            Retry: the brokers did not answer in time.
        """
        asked = [TopicPartition(*place) for place in places]
        try:
            found = self.consumer.committed(asked, COMMITTED_TIMEOUT_S) if asked else []
        except KafkaException as error:
            raise Retry(f"committed offsets: {error.args[0].str()}") from None
        for one in found:
            if one.error is not None:  # its offset would look like that of a new group
                raise Retry(f"committed offset of {one.topic}/{one.partition}: {one.error.str()}")
        return found

    def rewind(self) -> None:
        """Go back to what is committed, in every partition owned."""
        starts = self._starts(self.owned)
        # Assigned anew, because a partition that never got a place to begin cannot be sought in.
        try:
            self.consumer.incremental_unassign(starts)
            self.consumer.incremental_assign(starts)
        except KafkaException as error:
            raise Retry(f"going back: {error.args[0].str()}") from None
        self.waits_for = "" if self.owned else JOINING

    def processed(self, offsets: dict[Place, int]) -> None:
        """Note the next offsets to process, for the lag."""
        self.positions.update(offsets)

    def commit_ends(self, producer: StageProducer) -> None:
        """Now and then, of partitions of which all is processed, commit the end. Call it outside of transactions.

        Behind a last record lies the marker of its transaction, which nobody reads and retention removes with it: an
        offset before it would look, to who begins there, as if records had been removed. An offset that does not move
        is committed again every `RENEW_S`, or brokers would forget it in a later stop, however short. Where there never
        was a record the end is committed too: or records that come and go in a later stop would be passed over.

        Raises:
            Retry: perhaps it was not committed: `rewind`.
        """
        if clock.monotonic_s() < self._ends_due_s:
            return
        self._ends_due_s = clock.monotonic_s() + ENDS_EVERY_S
        done = {
            place: at
            for place, at in self.positions.items()
            if at == self._read_to.get(place) and (at >= 0 or place in self._ends)
        }
        ends = {
            place: max(at, self._ends.get(place, at))
            for place, at in done.items()
            if self._ends.get(place, at) > at or self._renew_s.get(place, 0.0) < self._ends_due_s
        }
        if not ends:
            return
        places = [
            TopicPartition(one.topic, one.partition, ends[one.topic, one.partition], metadata=one.metadata or "")
            for one in self.committed(ends)
        ]
        producer.begin()
        producer.commit(places, self.consumer)
        self._renew_s.update(dict.fromkeys(ends, self._ends_due_s + RENEW_S))
        self._read_to.update(ends)
        self.processed(ends)

    def commit_last_ends(self, producer: StageProducer) -> None:
        """At a stop commit what ends are known, if the brokers take them: what is left then is found again."""
        self._ends_due_s = 0.0
        with suppress(Retry, Fatal):
            self.commit_ends(producer)

    def report_lag(self) -> None:
        """Set the lag metrics, now and then."""
        self.lag.report(self.positions, self._ends)

    def close(self) -> None:
        """Leave the group at once, so that others take over without waiting."""
        self._is_closing = True
        self.consumer.close()

    def _starts(self, places: Iterable[Place]) -> list[TopicPartition]:
        """Where to read partitions from: what is committed, or the beginning where nothing ever was."""
        committed = self.committed(places)
        for one in committed:
            place = (one.topic, one.partition)
            self.positions[place] = one.offset
            self._read_to[place] = one.offset
            self._ends.pop(place, None)
        return [
            TopicPartition(one.topic, one.partition, OFFSET_BEGINNING if one.offset == OFFSET_INVALID else one.offset)
            for one in committed
        ]

    def _why_nowhere(self, place: Place) -> Exception:
        """Why a partition has no record to go on with."""
        committed = self.committed([place])[0].offset
        if committed == OFFSET_INVALID:
            return Retry(f"{place[0]}/{place[1]} was not told where to begin")  # `_assigned` got no answer
        return clients.gone(f"{place[0]}/{place[1]}", committed)

    def _assigned(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        if self._is_closing:  # what comes now goes at once, and a consumer on its way out is not told where to begin
            return
        new = [(partition.topic, partition.partition) for partition in partitions]
        self.owned.update(new)
        self.lag.metrics.partitions_owned.inc(len(new))  # a role may be a member of two groups
        self._tell("owns")
        # Should this raise Retry, librdkafka goes on without us, and `rewind` is to come.
        self.waits_for = "it is told where to begin"
        consumer.incremental_assign(self._starts(new))
        self.waits_for = ""

    def _told(self, text: str) -> None:
        statistics = json.loads(text)
        self.lag.told(statistics, self.owned)
        if self.waits_for != JOINING:
            return
        # Of an assignment of nothing librdkafka tells nobody: a member that has its coordinator for a while has it.
        group = statistics.get("cgrp", {})
        if group.get("state") == "up" and group.get("stateage", 0) >= STATISTICS_MS and self._is_member():
            self.waits_for = ""
            self._tell("owns")

    def _is_member(self) -> bool:
        """Whether the group has taken us, and has not put us out: members have an epoch, which librdkafka tells only in
        what transactions send of the group, behind a mark.
        """
        return int.from_bytes(self.consumer.consumer_group_metadata()[7:11], sys.byteorder, signed=True) > 0

    def _revoked(self, _consumer: Any, partitions: list[TopicPartition]) -> None:
        self.on_revoke()
        self._forget(partitions)

    def _lost(self, _consumer: Any, partitions: list[TopicPartition]) -> None:
        self.on_lost()
        self._forget(partitions)
        self.waits_for = JOINING

    def _forget(self, partitions: list[TopicPartition]) -> None:
        self.revocations += 1
        partitions = [one for one in partitions if (one.topic, one.partition) in self.owned]
        self.lag.metrics.partitions_owned.dec(len(partitions))
        for partition in partitions:
            place = (partition.topic, partition.partition)
            self.owned.discard(place)
            for known in (self.positions, self._read_to, self._ends, self._renew_s):
                known.pop(place, None)
            self.lag.forget(*place)
        self._tell(f"gave up {len(partitions)} partitions, owns")

    def _tell(self, what: str) -> None:
        _log.info("%s: %s %d partitions of %s", self.name or "ready", what, len(self.owned), ", ".join(self.topics))


def _topic(message: Message) -> str:
    return message.topic() or ""
