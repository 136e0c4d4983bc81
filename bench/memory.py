"""Memory at full load: the resident memory of each role for half an hour, and what waits in it.

    python -m bench.memory [--minutes N]

Three posts in ten are new. There is always a backlog: so the slowest role does all that it can, and the others all
that it lets them. Slopes are those of the last two thirds, by least squares over medians of a minute, with their
standard errors. It fails if a role grows, a queue is longer than it may be, or the load was not full all the time.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from prometheus_client.samples import Sample

from bench.load import Load, Publisher
from bench.machine import describe, rss_mib
from streams import clock
from streams.dedup import MISS_POSTS_MAX
from streams.dedup_app import LANE_RECORDS_MAX, STREAM_RECORDS_MAX
from streams.metrics import read_metrics
from streams.miss_lane import IN_FLIGHT_MAX
from streams.settings import Settings, load_settings
from streams.topics import Topics
from streams.up import Pipeline
from streams.version import version_of

# pyright: reportPrivateImportUsage=false

PAUSE_S = 0.2
"""Between two readings of the queues."""
EVERY_S = 5.0
"""Between two looks at memory."""
TELL_EVERY = 12
"""Looks: a minute."""
GROWTH_MIB_MAX = 16.0
"""Of the median of a third of the time; an allocator's own unrest is less."""
BACKLOG_LEAST = 50_000
BACKLOG_MOST = 150_000
"""Posts that have not come out: the publisher stops at so many, and goes on below the other."""
RETENTION_BYTES = 256 * 2**20
"""Of a partition of a topic that is written: half an hour would be tens of GB."""


def queues_max(settings: Settings) -> dict[str, int]:
    """The bounds of what waits in roles, by the label of `manyray_queue_length`."""
    return {
        "lane_records": LANE_RECORDS_MAX + STREAM_RECORDS_MAX,  # its agent still has some when fetching stops
        "windows": 2 * IN_FLIGHT_MAX,
        "window_posts": settings.transaction_posts_max + MISS_POSTS_MAX,  # the last chunk passes the limit
    }


def bound_topics(settings: Settings) -> None:
    """Let the brokers keep little of what nobody reads again."""
    topics = Topics.of(settings, version_of(settings))
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    values = {"retention.bytes": RETENTION_BYTES, "segment.bytes": RETENTION_BYTES // 4}
    changes = [
        ConfigResource(
            ResourceType.TOPIC,
            topic,
            incremental_configs=[
                ConfigEntry(name, str(value), incremental_operation=AlterConfigOpType.SET)
                for name, value in values.items()
            ],
        )
        for topic in (
            *topics.posts,
            topics.lookups,
            topics.misses,
            topics.backfill_misses,
            topics.embeddings,
            topics.vectors,
        )
    ]
    for future in admin.incremental_alter_configs(changes).values():
        future.result(30)


def slope(minutes: Sequence[float], mib: Sequence[float]) -> tuple[float, float]:
    """MiB an hour, and its standard error; NaN if they are too few."""
    if len(minutes) < 4:
        return math.nan, math.nan
    fit, covariance = np.polyfit(np.array(minutes) / 60, np.array(mib), 1, cov=True)
    return float(fit[0]), float(np.sqrt(covariance[0, 0]))


def scrape(pipeline: Pipeline) -> list[Sample]:
    """What the roles say now."""
    return [sample for url in pipeline.metrics_urls.values() for sample in read_metrics(url)]


def longest_queues(samples: Sequence[Sample]) -> dict[str, float]:
    """What waits in the roles: of processes of one role, in the one that has most."""
    longest: dict[str, float] = {}
    for sample in samples:
        if sample.name == "manyray_queue_length":
            queue = sample.labels["queue"]
            longest[queue] = max(longest.get(queue, 0), sample.value)
    return longest


def too_long(queues: Mapping[str, float], settings: Settings) -> list[str]:
    """What is wrong with the longest that queues were."""
    bounds = queues_max(settings)
    unseen = [f"queue {name} was not seen" for name in bounds if name not in queues]
    return unseen + [
        f"{length:.0f} in queue {name}, whose bound is {bounds[name]}"
        for name, length in queues.items()
        if length > bounds[name]
    ]


COME_OUT = ("manyray_ingest_rejected_total", "manyray_dedup_hits_total", "manyray_encode_posts_total")
"""What counts posts that are embedded or rejected."""


@dataclass(frozen=True)
class Look:
    """What one look at the pipeline saw."""

    at_s: float
    come_out: float
    backlog: float
    """Posts sent that have not come out."""
    mib: Mapping[str, float]


@dataclass(frozen=True)
class Third:
    """A third of the looks."""

    looks: Sequence[Look]

    @property
    def per_s(self) -> float:
        """Posts that came out."""
        first, last = self.looks[0], self.looks[-1]
        return (last.come_out - first.come_out) / (last.at_s - first.at_s)

    def mib(self, role: str) -> float:
        """The median of its memory."""
        return median(look.mib[role] for look in self.looks)


def watch(pipeline: Pipeline, publisher: Publisher, seconds: float) -> tuple[list[Look], dict[str, float]]:
    """Keep a backlog until the time is up: a look every few seconds, told every minute, and the longest queues.

    Raises:
        SystemExit: a role ended.
    """
    pids = pipeline.pids
    looks: list[Look] = []
    queues: dict[str, float] = {}
    began_s = clock.monotonic_s()
    while (now_s := clock.monotonic_s() - began_s) < seconds:
        clock.sleep_s(PAUSE_S)
        pipeline.raise_failure()
        if pipeline.pids != pids:
            raise SystemExit(f"a role ended after {now_s:.0f} s: processes were {pids}, and are {pipeline.pids}")
        try:
            samples, mib = scrape(pipeline), {name: rss_mib(pid) for name, pid in pids.items()}
        except OSError:  # one has just ended, to be seen at the next look
            continue
        come_out = sum(sample.value for sample in samples if sample.name in COME_OUT)
        backlog = publisher.sent - come_out
        if backlog > BACKLOG_MOST:
            publisher.go_on_at(0)
        elif backlog < BACKLOG_LEAST:
            publisher.go_on_at(1e6)
        for name, length in longest_queues(samples).items():
            queues[name] = max(queues.get(name, 0), length)
        if not looks or now_s - looks[-1].at_s >= EVERY_S:
            looks.append(Look(now_s, come_out, backlog, mib))
            if len(looks) % TELL_EVERY == 0:
                told = "  ".join(f"{name} {size:.0f} MiB" for name, size in mib.items())
                print(f"{now_s / 60:>5.1f} min  {come_out:>12,.0f} posts  backlog {backlog:>9,.0f}  {told}", flush=True)
    return looks, queues


def judge(looks: Sequence[Look]) -> list[str]:
    """Print what memory did, and say what is wrong."""
    size = len(looks) // 3
    thirds = [Third(looks[start : start + size]) for start in range(0, 3 * size, size)]
    print(f"posts a second, by thirds: {', '.join(f'{third.per_s:,.0f}' for third in thirds)}")
    problems: list[str] = []
    for role in looks[0].mib:
        minutes = [looks[at : at + TELL_EVERY] for at in range(size, len(looks), TELL_EVERY)]
        steep, error = slope(
            [median(look.at_s for look in minute) / 60 for minute in minutes],
            [median(look.mib[role] for look in minute) for minute in minutes],
        )
        medians = [third.mib(role) for third in thirds]
        told = f"median {', '.join(f'{mib:.0f}' for mib in medians)} MiB by thirds"
        print(f"{role:<7} {told}, most {max(look.mib[role] for look in looks):.0f}", end="; ")
        print(f"slope of the last two {steep:+.1f} +- {error:.1f} MiB an hour")
        if (growth := medians[2] - medians[1]) > GROWTH_MIB_MAX:
            problems.append(f"{role} grew by {growth:.0f} MiB from the second third to the last")
    least = min(look.backlog for look in (*thirds[1].looks, *thirds[2].looks))
    print(f"backlog at least {least:,.0f} posts in the last two thirds")
    if least <= 0:
        problems.append("there was a time without a backlog")
    if thirds[2].per_s < thirds[0].per_s / 2:
        problems.append("the load was not kept up")
    return problems


def main() -> int:
    """Run it and print figures with the machine; 1 if something is not as it has to be."""
    parser = argparse.ArgumentParser(description="memory at full load")
    parser.add_argument("--minutes", type=float, default=30.0)
    arguments = parser.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory(prefix="manyray-bench-") as folder:
        settings = load_settings(data_dir=Path(folder), model="hash", log_level="warning", table_disk_mib=1_024)
        with Pipeline(settings) as pipeline:
            pipeline.wait_ready(90)
            bound_topics(pipeline.settings)
            servers, topics = pipeline.settings.bootstrap_servers, settings.posts_topics
            publisher = Publisher(servers, topics, Load(seed=1), rate=1e6)
            try:
                looks, queues = watch(pipeline, publisher, arguments.minutes * 60)
            finally:
                publisher.end()
    problems = judge(looks) + too_long(queues, settings)
    print(", ".join(f"{name} at most {length:.0f} of {queues_max(settings)[name]}" for name, length in queues.items()))
    for problem in problems:
        print(f"FAIL: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
