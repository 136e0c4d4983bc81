"""Reading what a replay is of: records of fixed ranges of a topic's partitions."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from confluent_kafka import KafkaError, Message, TopicPartition

from schemas.errors import Fatal
from streams import clients
from streams.jobs import Range
from streams.rejected import PostRecord
from streams.settings import Settings

_log = logging.getLogger("manyray.replay")

READ_S = 0.1
_GAP_MIN = 100
"""Offsets without a record for which it is asked whether retention took them: transactions and compaction leave fewer,
or it is no matter."""


@dataclass(frozen=True, slots=True)
class Read:
    """Records, the next offset of each range after them, and how many offsets retention had removed before them."""

    records: Sequence[PostRecord]
    next_offsets: dict[int, int]
    gone: int = 0


class Ranges(Protocol):
    """What a replay reads. For one thread."""

    def go_to(self, next_offsets: Mapping[int, int]) -> None:
        """Go on from there."""
        ...

    def read(self, records_max: int) -> Read:
        """Up to so many records, fewer or none if no more come at once."""
        ...

    def close(self) -> None:
        """Stop reading."""
        ...


class TopicRanges:
    """Ranges of a topic: as they are, whatever is written to it, and however many partitions it gets, meanwhile."""

    def __init__(self, settings: Settings, topic: str, ranges: Sequence[Range]) -> None:
        self._topic = topic
        self._ends = {each.partition: each.end for each in ranges}
        self._next: dict[int, int] = {}
        self._reader = clients.reader(settings)

    def go_to(self, next_offsets: Mapping[int, int]) -> None:
        """As `Ranges.go_to`."""
        self._next = dict(next_offsets)
        left = [at for at, end in self._ends.items() if self._next[at] < end]
        self._reader.assign([TopicPartition(self._topic, at, self._next[at]) for at in left])

    def read(self, records_max: int) -> Read:
        """As `Ranges.read`.

        Raises:
            Retry: the brokers did not answer in time.
            Fatal: it is gone, made anew, or may not be read.
        """
        records: list[Message] = []
        gone = 0
        for message in self._reader.consume(records_max, READ_S):
            error, at, offset = message.error(), message.partition() or 0, message.offset() or 0
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                if why := clients.why_unreadable(message):
                    raise why
                _log.warning("reading: %s", error.str())
                continue
            end, expected = self._ends[at], self._next[at]
            if expected >= end:  # fetched before it was no longer asked for
                continue
            if offset < (expected if error is None else end):  # it begins anew, or ends
                raise Fatal(
                    f"{self._topic}/{at} ends before the {end} of the range: made anew, or it lost its end; begin "
                    "with another range"
                )
            if offset - expected >= _GAP_MIN:
                gone += self._removed(at, expected, min(offset, end))
            if offset < end:
                records.append(message)
            self._next[at] = min(offset + 1, end)
            if self._next[at] >= end:
                self._reader.incremental_unassign([TopicPartition(self._topic, at)])
        return Read(records, dict(self._next), gone)

    def close(self) -> None:
        """As `Ranges.close`."""
        self._reader.close()

    def _removed(self, partition: int, start: int, end: int) -> int:
        """How many offsets of a gap retention has removed: not those that compaction or transactions left."""
        low, _ = clients.watermarks(self._reader, self._topic, partition)
        return max(0, min(low, end) - start)
