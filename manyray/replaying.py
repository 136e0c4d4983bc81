"""`manyray replay` and `manyray jobs`: old posts through the pipeline again, as jobs that may stop at any time."""

import logging
import re
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from schemas.errors import Fatal
from streams import clock
from streams.jobs import Done, Job, Jobs, Order
from streams.metrics import Metrics
from streams.offsets import find_ranges, parse_bound
from streams.ranges import TopicRanges
from streams.replay import TELL_S, Replay
from streams.settings import Settings
from streams.topics import Topics, check_topics
from streams.version import spec_of

_log = logging.getLogger("manyray.replay")

JOBS_MAX = 1_000
"""Jobs that are remembered: each is read by whoever begins or lists one."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SILENT_S = 3 * TELL_S
"""A job that has told nothing for so long has no process that runs it."""
_LOOK_S = 0.5
All = dict[str, tuple[Job, Done]]


def begin_replay(
    settings: Settings,
    topic: str,
    *,
    ray: str,
    start: str,
    end: str,
    rate: float | None,
    name: str | None,
) -> Job:
    """Write a new job down: its ranges are those of this moment.

    Raises:
        Fatal: the ray, the topic, a bound or the name is not to be had.
    """
    topics = _topics(settings, ray)
    ranges = find_ranges(settings, topic, parse_bound(start, "--from"), parse_bound(end, "--to"))
    if not ranges:
        raise Fatal(f"topic {topic} holds no record from {start} to {end}: choose another --from and --to")
    now_ms = clock.now_ms()
    name = (
        name
        or f"{re.sub('[^a-z0-9._-]', '-', topic.lower())[:40]}-{datetime.fromtimestamp(now_ms / 1000, UTC):%m%d-%H%M%S}"
    )
    if not _NAME.fullmatch(name):
        raise Fatal(f"--name {name} is none: 1 to 64 of a-z, 0-9, dot, hyphen and underscore, a letter or digit first")
    job = Job(name, topics.version, topic, ranges, now_ms, rate)

    def decide(jobs: All) -> Job:
        if name in jobs:
            raise Fatal(
                f"there is a replay {name} already, {state_of(*jobs[name])}: go on with it by `manyray jobs resume "
                f"{name}`, or choose another --name"
            )
        if len(jobs) >= JOBS_MAX:
            raise Fatal(
                f"{len(jobs)} replays are remembered, which is the most: forget some by `manyray jobs forget NAME`"
            )
        return job

    Jobs(settings, topics).change(decide)
    return job


def run_replay(settings: Settings, name: str, stop: threading.Event) -> str:
    """Run a job to its end, or until `stop` is set, and return the line that sums it up.

    Raises:
        Fatal: there is none of that name, it has ended, or it cannot go on.
    """
    topics = _topics(settings, settings.ray)
    jobs = Jobs(settings, topics)
    job, _ = find(jobs.read(), name)
    if job.version != topics.version:
        raise Fatal(
            f"replay {name} is for version {job.version}, and the settings name {topics.version}: "
            f"set model to that of {job.version}"
        )
    source = TopicRanges(settings, job.topic, job.ranges)
    with (
        _progress(job) as on_done,
        Replay(settings, topics, Metrics.create(), job, source=source, stop=stop, on_done=on_done) as replay,
    ):
        replay.run()
        return summary(replay.job, replay.done)


def change_job(settings: Settings, name: str, **changes: object) -> str:
    """Change a job's order, rate or share, and say how it is then.

    Raises:
        Fatal: there is none of that name, or it has ended.
    """
    jobs = Jobs(settings, _topics(settings, settings.ray))
    changed: list[Job] = []

    def decide(known: All) -> Job:
        job, done = find(known, name)
        if done.ended:
            raise Fatal(f"replay {name} is {state_of(job, done)}: begin another by `manyray replay {job.topic}`")
        changed.append(msgspec.structs.replace(job, **changes))
        return changed[-1]

    jobs.change(decide)
    return _described(changed[-1])


def go_on(settings: Settings, name: str, order: Order, stop: threading.Event) -> str:
    """Give a job the order to run or to be cancelled: the process that runs it hears of it, or else this one does it.

    Raises:
        Fatal: there is none of that name, it has ended, or it cannot go on.
    """
    changed = change_job(settings, name, order=order)
    jobs = Jobs(settings, _topics(settings, settings.ray))
    _, before = find(jobs.read(), name)
    deadline_s = clock.monotonic_s() + _SILENT_S - (clock.now_ms() - before.told_ms) / 1000
    while clock.monotonic_s() < deadline_s and not stop.wait(_LOOK_S):
        job, done = find(jobs.read(), name)
        if done.told_ms != before.told_ms:
            return f"{changed}, in the process that has it" if not done.ended else summary(job, done)
    return run_replay(settings, name, stop)


def forget_job(settings: Settings, name: str) -> str:
    """Forget a job that has ended.

    Raises:
        Fatal: there is none of that name, or it has not ended.
    """

    def decide(known: All) -> str:
        job, done = find(known, name)
        if not done.ended:
            raise Fatal(f"replay {name} is {state_of(job, done)}: end it first by `manyray jobs cancel {name}`")
        return name

    Jobs(settings, _topics(settings, settings.ray)).change(decide)
    return f"forgot replay {name}"


def find(jobs: All, name: str) -> tuple[Job, Done]:
    """A job by name.

    Raises:
        Fatal: there is none.
    """
    if name not in jobs:
        known = f"there are {', '.join(jobs)}" if jobs else "there is none yet: begin one by `manyray replay TOPIC`"
        raise Fatal(f"no replay {name}; {known}")
    return jobs[name]


def state_of(job: Job, done: Done) -> str:
    """In a word or two, how a job is."""
    if done.ended:
        return "cancelled" if job.order == "cancel" else "finished"
    is_silent = clock.now_ms() - done.told_ms > _SILENT_S * 1000
    match job.order:
        case "cancel":
            return "stopped, to be cancelled" if is_silent else "being cancelled"
        case "pause":
            return "paused"
        case "run":
            return "stopped" if is_silent else "running"


def jobs_table(settings: Settings) -> Table:
    """A row for each job."""
    table = Table("job", "topic", "state", box=None, pad_edge=False)
    for column in ("done", "posts", "hits", "rejected", "rate"):
        table.add_column(column, justify="right")
    for name, (job, done) in Jobs(settings, _topics(settings, settings.ray)).read().items():
        rate = f"{job.rate:,.0f}/s" if job.rate else "-"
        table.add_row(
            name,
            job.topic,
            state_of(job, done),
            f"{_share_done(job, done):.0%}",
            f"{done.counts.posts:,}",
            _hit_ratio(done),
            f"{done.counts.rejected:,}",
            rate,
        )
    return table


def summary(job: Job, done: Done) -> str:
    """What became of a job, in a line."""
    counts = done.counts
    told = [f"{counts.posts:,} posts", f"hits {_hit_ratio(done)}", f"{counts.rejected:,} rejected"]
    told += [
        f"{count:,} {what}"
        for what, count in (("tombstones passed over", counts.tombstones), ("filtered out", counts.filtered))
        if count
    ]
    if counts.gone:
        told.append(f"{counts.gone:,} offsets gone, as retention removed them before they were read")
    end = "" if done.ended else f"; go on by `manyray jobs resume {job.name}`"
    return (
        f"replay {job.name} of {job.topic} {state_of(job, done)}, {_share_done(job, done):.1%}: {', '.join(told)}{end}"
    )


def _topics(settings: Settings, ray: str) -> Topics:
    spec = spec_of(settings)
    name, _, version = ray.partition("@")
    if name != settings.ray:
        raise Fatal(f'the settings serve ray {settings.ray}, and not {name}: set ray = "{name}"')
    if version and version != spec.version:
        raise Fatal(
            f"ray {name} is served in version {spec.version}, and not {version}: set model to that of {version}"
        )
    check_topics(settings, spec.version)
    return Topics.of(settings, spec.version, spec.form)


def _share_done(job: Job, done: Done) -> float:
    left = sum(each.end - done.next_offsets[each.partition] for each in job.ranges)
    return 1 - left / job.offsets


def _hit_ratio(done: Done) -> str:
    return f"{done.hits / (done.hits + done.misses):.1%}" if done.hits + done.misses else "-"


def _described(job: Job) -> str:
    rate = f"at most {job.rate:,.0f} posts a second" if job.rate else "as fast as live posts allow"
    return {
        "run": f"replay {job.name} goes {rate}",
        "pause": f"replay {job.name} pauses",
        "cancel": f"replay {job.name} is cancelled",
    }[job.order]


@contextmanager
def _progress(job: Job) -> Generator[Callable[[Done], None]]:
    """A bar on stderr that is told how far the job is; nobody looks, no bar."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    text = TextColumn("{task.fields[posts]:,} posts  hits {task.fields[hits]}  {task.fields[rejected]:,} rejected")
    columns = (text, BarColumn(), TaskProgressColumn(), TextColumn("left"), TimeRemainingColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(job.name, total=job.offsets, posts=0, hits="-", rejected=0)

        def on_done(done: Done) -> None:
            completed = round(_share_done(job, done) * job.offsets)
            progress.update(
                task, completed=completed, posts=done.counts.posts, hits=_hit_ratio(done), rejected=done.counts.rejected
            )

        yield on_done
