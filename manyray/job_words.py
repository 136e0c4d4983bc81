"""How replays are told of: their state, what became of them, a table of all, and a progress bar."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

from rich.table import Table

from manyray.progress import show_share
from streams import clock
from streams.jobs import Done, Job
from streams.replay import TELL_S

SILENT_S = 3 * TELL_S
"""A job that has told nothing for so long has no process that runs it."""


def state_of(job: Job, done: Done) -> str:
    """In a word or two, how a job is."""
    if done.ended:
        return "cancelled" if job.order == "cancel" else "finished"
    is_silent = clock.now_ms() - done.told_ms > SILENT_S * 1000
    match job.order:
        case "cancel":
            return "stopped, to be cancelled" if is_silent else "being cancelled"
        case "pause":
            return "paused, and stopped" if is_silent else "paused"
        case "run":
            return "stopped" if is_silent else "running"


def table_of(jobs: Iterable[tuple[Job, Done]]) -> Table:
    """A row for each job."""
    table = Table("job", "of", "state", box=None, pad_edge=False)
    for column in ("done", "posts", "hits", "rejected", "rate", "share"):
        table.add_column(column, justify="right")
    for job, done in jobs:
        table.add_row(
            job.name,
            job.topic,
            state_of(job, done),
            f"{share_done(job, done):.0%}",
            f"{done.counts.posts:,}",
            hit_ratio(done),
            f"{done.counts.rejected:,}",
            f"{job.rate:,.0f}/s" if job.rate else "-",
            f"{job.share:.0%}" if job.share else "-",
        )
    return table


def summary(job: Job, done: Done, state: str = "") -> str:
    """What became of a job, in a line; its state is as `state_of` says unless one is given."""
    counts = done.counts
    told = [f"{counts.posts:,} posts", f"hits {hit_ratio(done)}", f"{counts.rejected:,} rejected"]
    told += [
        f"{count:,} {what}"
        for what, count in (("tombstones passed on", counts.tombstones), ("filtered out", counts.filtered))
        if count
    ]
    if counts.gone:
        told.append(f"{counts.gone:,} offsets gone, as retention removed them before they were read")
    end = "" if done.ended else f"; go on by `manyray jobs resume {job.name}`"
    state = state or state_of(job, done)
    return f"replay {job.name} of {job.topic} {state}, {share_done(job, done):.1%}: {', '.join(told)}{end}"


def orders_of(job: Job) -> str:
    """How a job is to go on, in a line."""
    rate = f"at most {job.rate:,.0f} posts a second" if job.rate else "as fast as live posts allow"
    share = f", with {job.share:.0%} of the encoder at most" if job.share else ""
    return {
        "run": f"replay {job.name} goes {rate}{share}",
        "pause": f"replay {job.name} pauses",
        "cancel": f"replay {job.name} is cancelled",
    }[job.order]


def share_done(job: Job, done: Done) -> float:
    """Of its offsets."""
    left = sum(each.end - done.next_offsets[each.partition] for each in job.ranges)
    return 1 - left / job.offsets


def hit_ratio(done: Done) -> str:
    """Of the posts that were looked up."""
    return f"{done.hits / (done.hits + done.misses):.1%}" if done.hits + done.misses else "-"


@contextmanager
def show_job(job: Job) -> Generator[Callable[[Done], None]]:
    """What is told how far the job is, and shows it."""
    with show_share(job.offsets) as show:

        def on_done(done: Done) -> None:
            told = f"{done.counts.posts:,} posts  hits {hit_ratio(done)}  {done.counts.rejected:,} rejected"
            show(round(share_done(job, done) * job.offsets), told)

        yield on_done
