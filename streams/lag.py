"""Consumer lag of a role that uses confluent-kafka: records not yet processed, by partition."""

from dataclasses import dataclass, field

from confluent_kafka import Consumer, TopicPartition

from streams import clock
from streams.metrics import Metrics

EVERY_S = 0.5


@dataclass(slots=True)
class LagReporter:
    """Reports the lag now and then; costs nothing in between."""

    consumer: Consumer
    metrics: Metrics
    _next_s: float = 0.0
    _ends: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])

    def reached_end(self, topic: str, partition: int, offset: int) -> None:
        """All up to `offset` was read: control records at the end, which no reader sees, are no lag."""
        self._ends[topic, partition] = offset

    def report(self, processed: dict[tuple[str, int], int]) -> None:
        """Set the gauge from the watermarks last fetched and the next offset to process of each partition."""
        if clock.monotonic_s() < self._next_s:
            return
        self._next_s = clock.monotonic_s() + EVERY_S
        read = self.consumer.position([TopicPartition(*place) for place in processed])
        for (topic, partition), at in zip(processed, read, strict=True):
            _, high = self.consumer.get_watermark_offsets(at, cached=True) or (0, 0)
            done = max(0, processed[topic, partition])
            if done >= at.offset:  # nothing is under way, so only what is not a record can lie behind it
                done = max(done, self._ends.get((topic, partition), 0))
            self.metrics.consumer_lag.labels(topic, str(partition)).set(max(0, high - done))

    def forget(self, topic: str, partition: int) -> None:
        """The partition is no longer ours."""
        self._ends.pop((topic, partition), None)
        self.metrics.consumer_lag.remove(topic, str(partition))
