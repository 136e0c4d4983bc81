"""What readers wait for: records not yet processed, by partition, and transactions of others that are not ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from prometheus_client import Gauge

from schemas.chunk import Place
from streams import clock
from streams.metrics import Metrics

EVERY_S = 0.5


@dataclass(slots=True)
class OpenTransactions:
    """How long a transaction that nobody ends has kept committed-only readers from what lies behind its beginning."""

    seconds: Gauge
    _since: dict[Place, tuple[int, float]] = field(default_factory=dict[Place, tuple[int, float]])

    def note(self, topic: str, partition: int, *, read: int, stable: int, end: int) -> None:
        """Set the gauge. All before `read` was read, and may be before `stable`; the partition's end is `end`."""
        place = (topic, partition)
        now_s = clock.monotonic_s()
        since_s = now_s
        if stable <= read and stable < end:  # there is more, and none of it may be read
            before, since_s = self._since.get(place, (-1, now_s))
            if before != stable:  # another one holds it up now
                since_s = now_s
            self._since[place] = (stable, since_s)
        else:
            self._since.pop(place, None)
        self.seconds.labels(topic, str(partition)).set(now_s - since_s)

    def forget(self, topic: str, partition: int) -> None:
        """The partition is no longer ours."""
        self._since.pop((topic, partition), None)
        self.seconds.remove(topic, str(partition))


@dataclass(slots=True)
class LagReporter:
    """Reports the lag of a role that uses confluent-kafka, now and then; costs nothing in between."""

    consumer: Consumer
    metrics: Metrics
    open_transactions: OpenTransactions
    _next_s: float = 0.0

    def report(self, processed: Mapping[Place, int], ends: Mapping[Place, int]) -> None:
        """Set the gauge from the watermarks last fetched and the next offset to process of each partition.

        All before `ends` was read: control records at the end, which no reader sees, are no lag.
        """
        if clock.monotonic_s() < self._next_s:
            return
        self._next_s = clock.monotonic_s() + EVERY_S
        read = self.consumer.position([TopicPartition(*place) for place in processed])
        for (topic, partition), at in zip(processed, read, strict=True):
            _, high = self.consumer.get_watermark_offsets(at, cached=True) or (0, 0)
            done = max(0, processed[topic, partition])
            if done >= at.offset:  # nothing is under way, so only what is not a record can lie behind it
                done = max(done, ends.get((topic, partition), 0))
            self.metrics.consumer_lag.labels(topic, str(partition)).set(max(0, high - done))

    def told(self, statistics: Mapping[str, Any], owned: set[Place]) -> None:
        """Look for open transactions in librdkafka's statistics, which alone say where they begin."""
        topics = statistics.get("topics", {})
        for topic, partition in owned:
            seen = topics.get(topic, {}).get("partitions", {}).get(str(partition))
            if seen is not None and not seen["fetchq_cnt"]:  # what is fetched is read
                read, stable, end = seen["next_offset"], seen["ls_offset"], seen["hi_offset"]
                self.open_transactions.note(topic, partition, read=read, stable=stable, end=end)

    def forget(self, topic: str, partition: int) -> None:
        """The partition is no longer ours."""
        self.metrics.consumer_lag.remove(topic, str(partition))
        self.open_transactions.forget(topic, partition)
