"""`manyray replay`: old posts of a topic, or files, through the pipeline, as a job that may stop at any time."""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from manyray.file_ranges import PREFIX, FileRanges, count_rows, find_files, is_path
from manyray.job_words import show_job, state_of, summary
from manyray.reading import Format
from schemas.errors import Fatal
from streams import clock
from streams.control import check_ray, topics_of
from streams.filtering import compile_filter
from streams.jobs import Done, Files, Job, Jobs, Range
from streams.metrics import Metrics
from streams.offsets import find_ranges, parse_bound
from streams.ranges import Ranges, TopicRanges
from streams.replay import Replay
from streams.settings import Settings
from streams.versions import Served

JOBS_MAX = 1_000
"""Jobs that are remembered: each is read by whoever begins or lists one."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user asks to be replayed: a topic, or a path of files, and how."""

    source: str
    ray: str
    start: str = "beginning"
    end: str = "now"
    rate: float | None = None
    share: float | None = None
    filter: str = ""
    name: str | None = None
    layout: Format | None = None
    id_field: str | None = None
    text_field: str = "text"


def plan_job(settings: Settings, wanted: Wanted) -> Job:
    """The job that is wanted: its ranges are those of this moment.

    Raises:
        Fatal: the ray, the source, a bound, the filter or the name is not to be had.
    """
    served = find_served(settings, wanted.ray)
    if wanted.filter:
        compile_filter(wanted.filter)
    files: Files | None = None
    topic = wanted.source
    if is_path(wanted.source):
        if (wanted.start, wanted.end) != ("beginning", "now"):
            raise Fatal("files have neither times nor offsets: leave --from and --to out, or use --filter")
        files = find_files(wanted.source, wanted.layout, wanted.id_field, wanted.text_field)
        topic, ranges = PREFIX + Path(wanted.source).resolve().name, count_rows(files)
    else:
        start, end = parse_bound(wanted.start, "--from"), parse_bound(wanted.end, "--to")
        ranges = find_ranges(settings, topic, start, end)
    if not ranges:
        raise Fatal(
            f"{wanted.source} holds no post"
            if files
            else f"topic {topic} holds no record from {wanted.start} to {wanted.end}: choose another --from and --to"
        )
    now_ms = clock.now_ms()
    name = wanted.name or _name(topic, now_ms)
    if not _NAME.fullmatch(name):
        raise Fatal(f"--name {name} is none: 1 to 64 of a-z, 0-9, dot, hyphen and underscore, a letter or digit first")
    return Job(
        name, served.version, topic, ranges, now_ms, wanted.rate, wanted.share, filter=wanted.filter, files=files
    )


def begin_replay(settings: Settings, wanted: Wanted) -> Job:
    """Write a new job down.

    Raises:
        Fatal: as `plan_job`, or there is one of its name.
    """
    job = plan_job(settings, wanted)

    def decide(jobs: dict[str, tuple[Job, Done]]) -> Job:
        if job.name in jobs:
            raise Fatal(
                f"there is a replay {job.name} already, {state_of(*jobs[job.name])}: go on with it by `manyray jobs "
                f"resume {job.name}`, or choose another --name"
            )
        if len(jobs) >= JOBS_MAX:
            raise Fatal(
                f"{len(jobs)} replays are remembered, which is the most: forget some by `manyray jobs forget NAME`"
            )
        return job

    Jobs(settings).change(decide)
    return job


def run_replay(settings: Settings, name: str, stop: threading.Event) -> str:
    """Run a job to its end, or until `stop` is set, and return the line that sums it up.

    Raises:
        Fatal: there is none of that name, it has ended, or it cannot go on.
    """
    job, _ = find_job(Jobs(settings).read(), name)
    topics = topics_of(settings, find_served(settings, f"{settings.ray}@{job.version}"))
    source = source_of(settings, job, job.ranges)
    with (
        show_job(job) as on_done,
        Replay(settings, topics, Metrics.create(), job, source=source, stop=stop, on_done=on_done) as replay,
    ):
        replay.run()
        return summary(replay.job, replay.done, state="" if replay.done.ended else "stopped")


def source_of(settings: Settings, job: Job, ranges: Sequence[Range]) -> Ranges:
    """What reads these ranges of what a job is of."""
    return FileRanges(job.topic, job.files, ranges) if job.files else TopicRanges(settings, job.topic, ranges)


def find_job(jobs: dict[str, tuple[Job, Done]], name: str) -> tuple[Job, Done]:
    """A job by name.

    Raises:
        Fatal: there is none.
    """
    if name not in jobs:
        known = f"there are {', '.join(jobs)}" if jobs else "there is none yet: begin one by `manyray replay TOPIC`"
        raise Fatal(f"no replay {name}; {known}")
    return jobs[name]


def find_served(settings: Settings, ray: str) -> Served:
    """A ray's version, `<ray>@<version>`, or `<ray>` for the promoted one.

    Raises:
        Fatal: the settings are for another ray, it has no such version, or a topic is missing.
    """
    name, _, version = ray.partition("@")
    if name != settings.ray:
        raise Fatal(f'the settings serve ray {settings.ray}, and not {name}: set ray = "{name}"')
    found = check_ray(settings)
    return found.find(version or found.promoted)


def _name(topic: str, now_ms: int) -> str:
    """Of a topic, or a file, and the time."""
    plain = re.sub("[^a-z0-9._-]", "-", topic.removeprefix(PREFIX).lower()).lstrip("-._")[:40]
    return f"{plain or 'replay'}-{datetime.fromtimestamp(now_ms / 1000, UTC):%m%d-%H%M%S}"
