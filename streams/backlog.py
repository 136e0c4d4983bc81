"""What a replay has sent and the stages have not done yet, asked of the brokers: what its pace follows."""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.chunk import Place
from schemas.errors import Retry
from streams import clients, clock
from streams.checkpoint import Progress, parse_checkpoint, read_progress
from streams.line import Line
from streams.settings import Settings
from streams.topics import Topics

ASK_S = 5.0
"""For one answer of the brokers."""
_AT_ONCE = 1_000


class Backlog:
    """Of the lane `backfill`: how far dedup got in `lookups`, and encode in the misses. For one thread."""

    def __init__(self, settings: Settings, topics: Topics, job: str) -> None:
        """Raises Retry if the brokers do not answer."""
        self._settings, self._topics, self._job = settings, topics, job
        self.live_s = -math.inf
        """When dedup last told that it had looked up live posts."""
        self._partitions = range(settings.partitions)
        self._draining: list[tuple[str, Callable[[], dict[int, int]]]] = []
        self._left: dict[int, int] | None = None
        """Of the first of these topics: ends that are not reached."""
        self.drain_anew()
        with ExitStack() as held:
            self._reader = held.enter_context(closing(clients.reader(settings)))
            self._uncommitted = held.enter_context(closing(clients.reader(settings, committed=False)))
            # A record tells all that is asked: a broker gives at least one.
            peeking = clients.reader(settings, fetch_message_max_bytes=1, queued_min_messages=1)
            self._peeking = held.enter_context(closing(peeking))
            self._follower = held.enter_context(closing(clients.reader(settings)))
            self._group = held.enter_context(
                closing(clients.consumer(settings, f"manyray.encode.{topics.ray}.backfill"))
            )
            ends = self._ends(topics.checkpoints, self._reader)
            self._follower.assign(
                [TopicPartition(topics.checkpoints, *place) for place in ends.items()]
            )  # before they are read: none is missed
            self._progress = {at: read_progress(settings, topics.checkpoints, at) for at in self._partitions}
            self._held = held.pop_all()

    def close(self) -> None:
        """Stop asking."""
        self._held.close()

    def take(self, wait_s: float) -> None:
        """Take what dedup has told meanwhile, waiting at most so long for some.

        Raises:
            Fatal: it may not be read.
        """
        for message in self._follower.consume(_AT_ONCE, wait_s):
            if message.error() is not None:
                if why := clients.why_unreadable(message):
                    raise why
            elif (progress := parse_checkpoint(message)) is not None:
                partition = message.partition() or 0
                if self._live(progress) != self._live(self._progress[partition]):
                    self.live_s = clock.monotonic_s()
                self._progress[partition] = progress

    def is_looked_up(self, lines: Mapping[Place, Line]) -> bool:
        """Whether dedup has told that it looked up all chunks of the job's lines."""
        for (topic, number), line in lines.items():
            for at, sequence in enumerate(line.sequences):
                seen = self._progress[at].sources.get((topic, number, self._job))
                if sequence and not (seen and (seen.epoch_ms, seen.sequence) >= (line.epoch_ms, sequence)):
                    return False
        return True

    def is_drained(self) -> bool:
        """Whether all that lay in `lookups` when this was first asked is looked up, and what lay in the misses then is
        encoded: nothing that was sent before is under way.

        Raises:
            Retry: the brokers did not answer.
        """
        while self._draining:
            topic, done = self._draining[0]
            self._left = self._ends(topic, self._uncommitted) if self._left is None else self._left
            offsets = done()
            self._left = {
                at: end
                for at, end in self._left.items()
                if not self._is_past(TopicPartition(topic, at, offsets[at]), end)
            }
            if self._left:
                return False
            self._left = None
            self._draining.pop(0)
        return True

    def drain_anew(self) -> None:
        """What `is_drained` tells is of what is there when it is asked next."""
        self._draining = [
            (self._topics.lookups, self._looked_up),
            (self._topics.backfill_misses, self.encoded),
        ]
        self._left = None

    def misses(self) -> tuple[int, int]:
        """About how many records of the backfill's misses wait for the encoder, and how many it has taken in all."""
        encoded = self.encoded()
        waiting = sum(
            max(0, end - encoded[at]) for at, end in self._ends(self._topics.backfill_misses, self._reader).items()
        )
        return waiting, sum(encoded.values())

    def _looked_up(self) -> dict[int, int]:
        self.take(0.0)
        return {at: progress.lookups_offset for at, progress in self._progress.items()}

    def _is_past(self, place: TopicPartition, end: int) -> bool:
        """Whether no record lies, nor may come to be seen, from a place on before the end; markers may lie there."""
        if place.offset >= end:
            return True
        first, _ = clients.first_from(self._peeking, place, timeout_s=ASK_S)
        return first >= end  # and not at the end that an open transaction makes, which may hide some

    def tally(self) -> tuple[int, int]:
        """Posts of the job that were looked up, as far as `take` has heard, and the hits among them."""
        mine = [
            source
            for progress in self._progress.values()
            for source in progress.sources.values()
            if source.job == self._job
        ]
        return sum(source.posts for source in mine), sum(source.hits for source in mine)

    def encoded(self) -> dict[int, int]:
        """The next offset of each partition of the backfill's misses that is to be encoded."""
        asked = [TopicPartition(self._topics.backfill_misses, at) for at in self._partitions]
        try:
            found = self._group.committed(asked, ASK_S)
        except KafkaException as error:
            raise Retry(f"how far encode got in {self._topics.backfill_misses}: {error.args[0].str()}") from None
        for one in found:
            if one.error is not None:  # its offset would look like that of a new group
                raise Retry(f"how far encode got in {one.topic}/{one.partition}: {one.error.str()}")
        return {one.partition: max(0, one.offset) for one in found}

    def _live(self, progress: Progress) -> list[tuple[int, int]]:
        """The last numbers of lines of live posts."""
        return [
            (source.epoch_ms, source.sequence)
            for (topic, _, job), source in progress.sources.items()
            if not job and topic in self._topics.posts
        ]

    def _ends(self, topic: str, reader: Consumer) -> dict[int, int]:
        return {at: clients.watermarks(reader, topic, at, timeout_s=ASK_S)[1] for at in self._partitions}
