"""`manyray jobs`: what is asked of replays that there are."""

import threading

import msgspec
from rich.table import Table

from manyray.job_words import SILENT_S, orders_of, state_of, summary, table_of
from manyray.replaying import find_job, run_replay
from schemas.errors import Fatal
from streams import clock
from streams.control import check_ray
from streams.jobs import Done, Job, Jobs, Order
from streams.settings import Settings

_LOOK_S = 0.5


def list_jobs(settings: Settings) -> Table:
    """A row for each job, the oldest first."""
    return table_of(Jobs(settings).read().values())


def change_job(settings: Settings, name: str, **changes: object) -> str:
    """Change a job's order, rate or share, and say how it is then.

    Raises:
        Fatal: there is none of that name, or it has ended.
    """
    jobs = Jobs(settings)
    changed: list[Job] = []

    def decide(known: dict[str, tuple[Job, Done]]) -> Job:
        job, done = find_job(known, name)
        if done.ended:
            raise Fatal(f"replay {name} is {state_of(job, done)}: begin another by `manyray replay`")
        changed.append(msgspec.structs.replace(job, **changes))
        return changed[-1]

    jobs.change(decide)
    return orders_of(changed[-1])


def go_on(settings: Settings, name: str, order: Order, stop: threading.Event) -> str:
    """Give a job the order to run or to be cancelled: the process that runs it hears of it, or else this one does it.

    Raises:
        Fatal: there is none of that name, it has ended, or it cannot go on.
    """
    changed = change_job(settings, name, order=order)
    jobs = Jobs(settings)
    _, before = find_job(jobs.read(), name)
    silent_s = max(0.0, (clock.now_ms() - before.told_ms) / 1000)  # by a clock that may not be ours
    deadline_s = clock.monotonic_s() + SILENT_S - silent_s
    while clock.monotonic_s() < deadline_s and not stop.wait(_LOOK_S):
        job, done = find_job(jobs.read(), name)
        if done.told_ms != before.told_ms:
            return f"{changed}, in the process that has it" if not done.ended else summary(job, done)
    return run_replay(settings, name, stop)


def forget_job(settings: Settings, name: str) -> str:
    """Forget a job that has ended, or whose version was retired.

    Raises:
        Fatal: there is none of that name, or it has not ended.
    """
    names = check_ray(settings).names

    def decide(known: dict[str, tuple[Job, Done]]) -> str:
        job, done = find_job(known, name)
        if not done.ended and job.version in names:
            raise Fatal(f"replay {name} is {state_of(job, done)}: end it first by `manyray jobs cancel {name}`")
        return name

    Jobs(settings).change(decide)
    return f"forgot replay {name}"
