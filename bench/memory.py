"""Memory at full load: the resident memory of each role for half an hour, and what waits in it.

    python -m bench.memory [--minutes N]

Three posts in ten are new. There is always a backlog: so the slowest role does all that it can, and the others all
that it lets them. Slopes are those of the last two thirds, by least squares, with their standard errors.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from bench.load import Load, Publisher
from bench.machine import describe, rss_mib
from bench.pipeline import total
from streams import clock
from streams.dedup import MISS_POSTS_MAX
from streams.dedup_app import LANE_RECORDS_MAX, STREAM_RECORDS_MAX
from streams.encode import IN_FLIGHT_MAX
from streams.metrics import read_metrics
from streams.settings import Settings, load_settings
from streams.topics import Topics
from streams.up import Pipeline
from streams.version import version_of

# pyright: reportPrivateImportUsage=false

EVERY_S = 5.0
BACKLOG_LEAST = 50_000
BACKLOG_MOST = 150_000
"""Posts that have not come out: the publisher stops at so many, and goes on below the other."""
RETENTION_BYTES = 256 * 2**20
"""Of a partition of a topic that is written: half an hour would be tens of GB."""


def queues_max(settings: Settings) -> dict[str, int]:
    """The bounds of what waits in roles, by the label of `manyray_queue_length`."""
    return {
        "lane_records": LANE_RECORDS_MAX + STREAM_RECORDS_MAX,  # its agent still has some when fetching stops
        "windows": IN_FLIGHT_MAX,
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
        for topic in (*topics.posts, topics.lookups, topics.misses, topics.embeddings, topics.vectors)
    ]
    for future in admin.incremental_alter_configs(changes).values():
        future.result(30)


def slope(seconds: list[float], mib: list[float]) -> tuple[float, float]:
    """MiB an hour, and its standard error."""
    fit, covariance = np.polyfit(np.array(seconds) / 3600, np.array(mib), 1, cov=True)
    return float(fit[0]), float(np.sqrt(covariance[0, 0]))


def longest_queues(pipeline: Pipeline) -> dict[str, float]:
    """What waits in the roles now."""
    return {
        sample.labels["queue"]: sample.value
        for url in pipeline.metrics_urls.values()
        for sample in read_metrics(url)
        if sample.name == "manyray_queue_length"
    }


DONE = {
    "ingest": "manyray_ingest_rejected_total",
    "dedup": "manyray_dedup_hits_total",
    "encode": "manyray_encode_posts_total",
}
"""What counts the posts that have come out, by role."""


def come_out(pipeline: Pipeline) -> float:
    """Posts that are embedded or rejected."""
    return sum(total(pipeline, role, metric) for role, metric in DONE.items())


def measure(pipeline: Pipeline, publisher: Publisher, seconds: float) -> bool:
    """Sample until the time is up, keeping a backlog; then print. Says whether every queue was within its bound."""
    pids = pipeline.pids
    at: list[float] = []
    done: list[float] = []
    seen: dict[str, list[float]] = {name: [] for name in pids}
    queues: dict[str, float] = {}
    began_s = clock.monotonic_s()
    while (now_s := clock.monotonic_s() - began_s) < seconds:
        pipeline.raise_failure()
        backlog = publisher.sent - come_out(pipeline)
        if backlog > BACKLOG_MOST:
            publisher.go_on_at(0)
        elif backlog < BACKLOG_LEAST:
            publisher.go_on_at(1e6)
        if not at or now_s - at[-1] >= EVERY_S:
            at.append(now_s)
            done.append(total(pipeline, "dedup", "manyray_dedup_posts_total"))
            for name, pid in pids.items():
                seen[name].append(rss_mib(pid))
            for name, length in longest_queues(pipeline).items():
                queues[name] = max(queues.get(name, 0), length)
        clock.sleep_s(0.2)
    start = len(at) // 3
    late = (done[-1] - done[start]) / (at[-1] - at[start])
    print(f"{done[-1] - done[0]:,.0f} posts in {seconds / 60:.0f} minutes, {late:,.0f} a second in the last two thirds")
    for name, mib in seen.items():
        steep, error = slope(at[start:], mib[start:])
        told = f"{mib[0]:.0f} MiB at first, {mib[start]:.0f} after a third, {mib[-1]:.0f} at last, most {max(mib):.0f}"
        print(f"{name:<7} {told}; slope {steep:+.1f} +- {error:.1f} MiB an hour")
    bounds = queues_max(pipeline.settings)
    for name, length in queues.items():
        print(f"{name:<13} at most {length:.0f}, bound {bounds[name]}")
    return all(length <= bounds[name] for name, length in queues.items())


def main() -> int:
    """Run it and print figures with the machine; 1 if a queue was longer than it may be."""
    parser = argparse.ArgumentParser(description="memory at full load")
    parser.add_argument("--minutes", type=float, default=30.0)
    arguments = parser.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory(prefix="manyray-bench-") as folder:
        settings = load_settings(data_dir=Path(folder), model="hash", log_level="warning", table_disk_mib=1_024)
        with Pipeline(settings) as pipeline:
            pipeline.wait_ready(90)
            bound_topics(pipeline.settings)
            servers, topic = pipeline.settings.bootstrap_servers, settings.posts_topics[0]
            publisher = Publisher(servers, topic, Load(seed=1), rate=1e6)
            is_bounded = measure(pipeline, publisher, arguments.minutes * 60)
            publisher.end()
    return 0 if is_bounded else 1


if __name__ == "__main__":
    sys.exit(main())
