"""Replays as jobs: what was asked for, and how far each got.

Both are records of `replays.<ray>`, in JSON, of which the last of a key holds.
"""

from collections.abc import Callable
from contextlib import closing
from typing import Literal

import msgspec

from streams.compacted import Latest, changing
from streams.settings import Settings
from streams.topics import Topics, check_topics

ASKED, DONE = "asked/", "done/"
"""Before a job's name: the key of what was asked for, and of how far it got."""

Order = Literal["run", "pause", "cancel"]


class Range(msgspec.Struct, frozen=True):
    """Offsets of one partition: from `start` up to, and without, `end`."""

    partition: int
    start: int
    end: int


class Files(msgspec.Struct, frozen=True):
    """Files of posts, each in the place of a partition: as they were when the job began, and how they are read."""

    paths: tuple[str, ...]
    sizes_bytes: tuple[int, ...]
    layout: str | None
    id_field: str | None
    text_field: str


class Job(msgspec.Struct, frozen=True):
    """A replay as it was asked for: the ranges never change, `order`, `rate` and `share` may while it runs.

    topic: `file:` and a name, which no topic can have, if it is of files. rate: posts a second, none for as fast as it
    goes. share: of the encoder's time, in (0, 1]. filter: as `compile_filter` takes it.
    """

    name: str
    version: str
    topic: str
    ranges: tuple[Range, ...]
    asked_ms: int
    rate: float | None = None
    share: float | None = None
    filter: str = ""
    order: Order = "run"
    files: Files | None = None

    @property
    def offsets(self) -> int:
        """How many offsets it has: at least as many as records."""
        return sum(each.end - each.start for each in self.ranges)


class Counts(msgspec.Struct, frozen=True):
    """What became of the records that a job has read."""

    posts: int = 0
    rejected: int = 0
    tombstones: int = 0
    filtered: int = 0
    gone: int = 0
    """Offsets that retention removed before they were read."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            *(
                mine + others
                for mine, others in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
            )
        )


class Done(msgspec.Struct, frozen=True):
    """How far a job got, committed with what it sent: the next offset of each partition, and what the records were.

    hits, misses: posts that the tables had the vector of, and that they had not, as far as is known.
    """

    next_offsets: dict[int, int]
    told_ms: int
    epoch_ms: int = 0
    """Of the lines of its chunks: of the last process that went on with it."""
    counts: Counts = Counts()
    hits: int = 0
    misses: int = 0
    ended: bool = False
    """Whether all of it came out; or, if it was cancelled, what it had sent."""


def job_of(value: bytes) -> Job:
    """What `msgspec.json.encode` wrote of a job."""
    return msgspec.json.decode(value, type=Job)


def done_of(value: bytes | None, job: Job) -> Done:
    """How far a job got; it has not begun where there is no record."""
    if value is None:
        return Done({each.partition: each.start for each in job.ranges}, 0)
    return msgspec.json.decode(value, type=Done)


class Jobs:
    """The jobs of a ray. Changes are made one after another, however many ask for some at the same moment."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._topics = settings, Topics.of(settings, "")

    def read(self) -> dict[str, tuple[Job, Done]]:
        """All of them by name, the oldest first, and how far each got.

        Raises:
            Fatal: the topic is missing.
            Retry: the brokers did not answer in time.
        """
        check_topics(self._settings)
        with closing(Latest(self._settings, self._topics.replays)) as latest:
            latest.catch_up()
            return _jobs_in(latest)

    def change(self, decide: Callable[[dict[str, tuple[Job, Done]]], Job | str]) -> None:
        """Write what `decide` says of the jobs there are: a job that is new or changed, or the name of one to forget.

        Raises:
            Fatal: `decide` refuses, or another change was made at this moment.
        """
        topic = self._topics.replays
        with changing(self._settings, topic, f"manyray.replays.{self._topics.ray}") as (latest, producer):
            decided = decide(_jobs_in(latest))
            if isinstance(decided, Job):
                written: dict[str, bytes | None] = {ASKED + decided.name: msgspec.json.encode(decided)}
            else:
                written = {ASKED + decided: None, DONE + decided: None}
            producer.begin()
            for key, value in written.items():
                producer.produce(topic, value, key=key.encode(), partition=0)


def _jobs_in(latest: Latest) -> dict[str, tuple[Job, Done]]:
    jobs = sorted(map(job_of, dict(latest.under(ASKED)).values()), key=lambda job: (job.asked_ms, job.name))
    return {job.name: (job, done_of(latest.get(DONE + job.name), job)) for job in jobs}
