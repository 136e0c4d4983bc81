"""A replay: records of fixed ranges of a topic, through the code of ingest, into the lane `backfill`.

What it sends and how far it got are one transaction, so whoever goes on after it begins exactly there. It has few
transactions in flight, and so few misses waiting, that live posts do not wait long behind its own.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Self

import msgspec

from schemas.chunk import Place
from schemas.content import hasher
from schemas.errors import Fatal
from schemas.internal_pb2 import Chunk, Source
from streams import clock
from streams.attempts import keep_going, with_retries
from streams.backlog import Backlog
from streams.compacted import Latest
from streams.failpoints import reach
from streams.filtering import compile_filter
from streams.ingest import send_batch, sort_posts
from streams.jobs import ASKED, DONE, Counts, Done, Job, done_of, job_of
from streams.line import Line
from streams.metrics import Metrics
from streams.pace import Cushion, Pace
from streams.packing import Packer
from streams.ranges import READ_S, Ranges, Read
from streams.settings import Settings
from streams.topics import Topics
from streams.transactions import StageProducer

_log = logging.getLogger("manyray.replay")

LIVE_FOR_S = 30.0
"""After the last live post, how long others are reckoned with."""
TELL_S = 5.0
"""How often it says that it is at work, where it has nothing to send."""
ASK_MISSES_S = 0.2
DRAIN_S = 0.2
"""How often it looks whether all has come out."""
_WAIT_S = 0.02


@dataclass(frozen=True, slots=True)
class Sent:
    """A transaction in flight, and when it was committed."""

    records: int
    at_s: float
    lines: dict[Place, Line]


class Replay:
    """One process's run of a job. Used by one thread."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        metrics: Metrics,
        job: Job,
        *,
        source: Ranges,
        stop: threading.Event,
        on_done: Callable[[Done], object] = lambda _: None,
    ) -> None:
        """`source` gives the job's records, and is closed with it; `on_done` is told after each step how far it got.

        Raises:
            Retry: the brokers do not answer.
        """
        self.job = job
        self.done = Done({}, 0)
        self._source = source
        self._settings, self._topics, self._metrics, self._stop, self._on_done = (
            settings,
            topics,
            metrics,
            stop,
            on_done,
        )
        hash_of = hasher(settings.salt.get_secret_value())
        self._packer = Packer(hash_of, settings.partitions, settings.chunk_posts_max, is_backfill=True, job=job.name)
        self._tells_rejected = job.topic not in topics.all_posts
        """What came through ingest before was rejected there."""
        self._is_wanted = compile_filter(job.filter) if job.filter else None
        self._ranges = {each.partition: each for each in job.ranges}
        self._lines: dict[Place, Line] = {}
        self._in_flight: deque[Sent] = deque()
        # Beside live posts a chunk a partition: what a live one waits behind.
        live_posts_max = settings.chunk_posts_max * settings.partitions
        self._pace, self._cushion = Pace(job.rate, live_posts_max=live_posts_max), Cushion()
        self._epoch_ms = 0
        self._misses_due_s = self._told_s = 0.0
        self._is_behind = self._is_cancelled = False
        self._producer = StageProducer.create(settings, f"manyray.replay.{topics.ray}.{job.name}", metrics, stop)
        with ExitStack() as held:
            held.callback(source.close)
            self._asked = held.enter_context(closing(Latest(settings, topics.replays)))
            self._backlog = held.enter_context(closing(Backlog(settings, topics, job.name)))
            held.callback(self._producer.close)
            self._held = held.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def run(self) -> None:
        """Send what is left, and wait until all of it has come out, or `stop` is set.

        Raises:
            Fatal: it cannot go on, or another process has taken the job over.
        """
        with_retries(self.recover, self._stop)
        over = threading.Event()

        def step() -> bool:
            try:
                return self.step()
            finally:
                if self._stop.is_set() or self.done.ended:
                    over.set()

        if not self.done.ended:
            keep_going(step, self.recover, over)

    def step(self) -> bool:
        """Send a batch, or wait for a moment; says whether something was committed.

        Raises:
            Retry: it was not committed, or that is unknown: `recover`.
            Fatal: it cannot go on.
        """
        if self.done.ended:  # its last commit was made, though nobody said so
            return True
        self._asked.take()
        self.job = self._asked_for()
        if done_of(self._asked.get(DONE + self.job.name), self.job).epoch_ms > self._epoch_ms:
            raise Fatal(f"another process has taken over replay {self.job.name}: this one ends")
        self._pace.rate, self._packer.share = self.job.rate, self.job.share or 0.0
        if self.job.order == "cancel" or self._is_cancelled or not self._left():
            return self._finish()
        self._look()
        posts, wait_s = self._pace.next(clock.monotonic_s())
        is_held = self.job.order == "pause" or len(self._in_flight) >= self._pace.in_flight_max or self._is_behind
        if is_held or not posts:
            return self._wait(_WAIT_S if is_held else min(wait_s, READ_S))
        read = self._source.read(posts)
        if read.next_offsets == self.done.next_offsets:
            return self._wait(0.0)
        self._send(read)
        return True

    def recover(self) -> None:
        """Take the job over from whoever had it, and go on where it was committed."""
        self._producer.open()
        self._asked.catch_up()
        self.job = self._asked_for()
        self.done = done_of(self._asked.get(DONE + self.job.name), self.job)
        self._epoch_ms = max(clock.now_ms(), self.done.epoch_ms + 1)  # of lines that are this process's alone
        self._lines.clear()
        self._in_flight.clear()
        self._backlog.drain.begin()
        # What is cancelled may be of files that are gone.
        self._is_cancelled = self.job.order == "cancel"
        if not self._is_cancelled:
            self._source.go_to(self.done.next_offsets)

    def _asked_for(self) -> Job:
        found = self._asked.get(ASKED + self.job.name)
        if found is None:
            raise Fatal(f"there is no replay {self.job.name}: see `manyray jobs list`")
        return job_of(found)

    def _left(self) -> list[int]:
        """The partitions that are not read to the end of their range."""
        return [at for at, each in self._ranges.items() if self.done.next_offsets[at] < each.end]

    def _look(self) -> None:
        """See what came back, and what waits."""
        now_s = clock.monotonic_s()
        self._backlog.take(0.0)
        self._pace.is_beside_live = now_s - self._backlog.live_s < LIVE_FOR_S
        while self._in_flight and self._backlog.is_looked_up(self._in_flight[0].lines):
            first = self._in_flight.popleft()
            self._pace.came_back(first.records, now_s - first.at_s)
        if now_s >= self._misses_due_s:
            self._misses_due_s = now_s + ASK_MISSES_S
            waiting, encoded = self._backlog.misses()
            was_behind, self._is_behind = self._is_behind, waiting > self._cushion.most(encoded, now_s)
            if self._is_behind and not was_behind:
                self._pace.held_up()

    def _send(self, read: Read) -> None:
        """One transaction: the chunks of the records, what is bad, and how far that is."""
        now_ms, now_s = clock.now_ms(), clock.monotonic_s()
        kept = [message for message in read.records if self._is_wanted(message)] if self._is_wanted else read.records
        batch = sort_posts(kept, {self.job.topic: self._packer}, self._settings.text_bytes_max)
        bad, deleted = len(batch.rejected), batch.deletions
        if not self._tells_rejected:
            batch.rejected.clear()
        counts = Counts(len(kept) - bad - deleted, bad, deleted, len(read.records) - len(kept), read.gone)
        posts, hits = self._backlog.tally()
        done = Done(read.next_offsets, now_ms, self._epoch_ms, self.done.counts + counts, hits, posts - hits)
        begun = Line.begin(self._epoch_ms, self._settings.partitions)
        lines = {source: self._lines.get(source, begun) for source in batch.next_offsets}
        self._producer.begin()
        lines = send_batch(batch, lines, self._producer, self._topics, self._metrics, version=self._topics.version)
        self._commit(done)
        self._lines.update(lines)
        self._pace.sent(len(read.records), now_s)
        if batch.chunks:
            self._backlog.drain.begin()
            self._in_flight.append(Sent(len(read.records), clock.monotonic_s(), lines))

    def _wait(self, wait_s: float) -> bool:
        """Wait, and now and then tell that there is somebody at it; says whether that was told."""
        self._backlog.take(wait_s)
        if clock.monotonic_s() - self._told_s < TELL_S:
            return False
        self._send(Read([], self.done.next_offsets))
        return True

    def _finish(self) -> bool:
        """End the job if all that it sent has come out; says whether something was committed."""
        if not self._backlog.drain.is_done():
            return self._wait(DRAIN_S)
        self._end()
        return True

    def _end(self) -> None:
        """End the job's lines, and the job."""
        posts, hits = self._backlog.tally()
        done = msgspec.structs.replace(self.done, told_ms=clock.now_ms(), hits=hits, misses=posts - hits, ended=True)
        last = Chunk(
            version=self._topics.version,
            sources=[Source(topic=self.job.topic, partition=at, job=self.job.name, ended=True) for at in self._ranges],
            backfill=True,
        ).SerializeToString()
        self._producer.begin()
        for partition in range(self._settings.partitions):
            self._producer.produce(self._topics.lookups, last, partition=partition)
        self._commit(done)

    def _commit(self, done: Done) -> None:
        reach("replay.sent")
        self._producer.settle()
        key = (DONE + self.job.name).encode()
        self._producer.produce(self._topics.replays, msgspec.json.encode(done), key=key, partition=0)
        self._producer.commit()
        self.done, self._told_s = done, clock.monotonic_s()
        self._on_done(done)
