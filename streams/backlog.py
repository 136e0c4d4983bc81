"""What a replay has sent and the stages have not done yet, asked of the brokers: what its pace follows."""

import math
from collections.abc import Mapping
from contextlib import ExitStack, closing

from confluent_kafka import TopicPartition

from schemas.chunk import Place
from streams import clients, clock
from streams.checkpoint import Progress, parse_checkpoint, read_progress
from streams.drain import ASK_S, Drain, committed_in
from streams.line import Line
from streams.settings import Settings
from streams.topics import Topics

_AT_ONCE = 1_000


class Backlog:
    """Of the lane `backfill`: how far dedup got in `lookups`, and encode in the misses. For one thread."""

    def __init__(self, settings: Settings, topics: Topics, job: str) -> None:
        """Raises Retry if the brokers do not answer."""
        self._settings, self._topics, self._job = settings, topics, job
        self.live_s = -math.inf
        """When dedup last told that it had looked up live posts."""
        self._partitions = range(settings.partitions)
        with ExitStack() as held:
            self._reader = held.enter_context(closing(clients.reader(settings)))
            self._follower = held.enter_context(closing(clients.reader(settings)))
            self._group = held.enter_context(closing(clients.consumer(settings, topics.backfill_group)))
            ends = self._ends(topics.checkpoints)
            self._follower.assign(
                [TopicPartition(topics.checkpoints, *place) for place in ends.items()]
            )  # before they are read: none is missed
            self._progress = {at: read_progress(settings, topics.checkpoints, at) for at in self._partitions}
            stages = [(topics.lookups, self._looked_up), (topics.backfill_misses, self.encoded)]
            self.drain = held.enter_context(closing(Drain(settings, stages)))
            """Whether what was sent into the lane has come out."""
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

    def misses(self) -> tuple[int, int]:
        """About how many records of the backfill's misses wait for the encoder, and how many it has taken in all."""
        encoded = self.encoded()
        waiting = sum(max(0, end - encoded[at]) for at, end in self._ends(self._topics.backfill_misses).items())
        return waiting, sum(encoded.values())

    def _looked_up(self) -> dict[int, int]:
        self.take(0.0)
        return {at: progress.lookups_offset for at, progress in self._progress.items()}

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
        return committed_in(self._group, self._topics.backfill_misses, self._partitions)

    def _live(self, progress: Progress) -> list[tuple[int, int]]:
        """The last numbers of lines of live posts."""
        return [
            (source.epoch_ms, source.sequence)
            for (topic, _, job), source in progress.sources.items()
            if not job and topic in self._topics.posts
        ]

    def _ends(self, topic: str) -> dict[int, int]:
        return {at: clients.watermarks(self._reader, topic, at, timeout_s=ASK_S)[1] for at in self._partitions}
