"""What exactly once costs: the hit path with transactions beside the one without, on one broker, in turn.

    python -m bench.delivery [--posts N] [--repeats N]

Two pipelines stand on the broker, one of each `delivery`; the one that is not measured has nothing to do.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench.machine import Speed, describe
from bench.pipeline import await_total, hit_path, publish, texts, total
from streams.broker import Broker
from streams.settings import load_settings
from streams.topics import create_topics
from streams.up import Pipeline
from streams.version import version_of

DELIVERIES = ("exactly_once", "at_least_once")
WARM_RUNS = 2


def start(servers: str, delivery: str, folder: Path) -> Pipeline:
    """A pipeline of a ray and a topic of its own."""
    name = delivery.replace("_", "-")
    settings = load_settings(
        bootstrap_servers=servers,
        data_dir=folder / name,
        ray=name,
        posts_topics=(f"posts-{name}",),
        model="hash",
        delivery=delivery,
        log_level="warning",
    )
    create_topics(settings, version_of(settings))
    return Pipeline(settings)


def warm(pipeline: Pipeline, posts: list[str]) -> None:
    """Embed every post once, so that all are found from then on; and let the broker's JVM compile what is measured."""
    pipeline.wait_ready(90)
    publish(pipeline.settings, posts, "warm")
    await_total(pipeline, "dedup", "manyray_dedup_posts_total", len(posts))
    await_total(
        pipeline, "encode", "manyray_encode_posts_total", total(pipeline, "dedup", "manyray_dedup_misses_total")
    )
    for run in range(WARM_RUNS):
        hit_path(pipeline, posts, f"warm{run}")


def main() -> None:
    """Run both and print figures with the machine."""
    parser = argparse.ArgumentParser(description="what exactly once costs")
    parser.add_argument("--posts", type=int, default=400_000, help="posts of a run")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side, in turn")
    arguments = parser.parse_args()
    print(describe())
    posts = texts(arguments.posts, arguments.posts // 20)
    with tempfile.TemporaryDirectory(prefix="manyray-bench-") as folder, ExitStack() as held:
        broker = held.enter_context(Broker.start(Path(folder), port=0))
        pipelines = {
            delivery: held.enter_context(start(broker.bootstrap_servers, delivery, Path(folder)))
            for delivery in DELIVERIES
        }
        for pipeline in pipelines.values():
            warm(pipeline, posts)
        speeds: dict[str, list[Speed]] = {delivery: [] for delivery in DELIVERIES}
        for repeat in range(arguments.repeats):
            for delivery in DELIVERIES if repeat % 2 == 0 else DELIVERIES[::-1]:
                speeds[delivery].append(hit_path(pipelines[delivery], posts, f"hit{repeat}"))
                print(f"{delivery:>13} {repeat + 1}:  {speeds[delivery][-1]}", flush=True)
    exact, least = (speeds[delivery] for delivery in DELIVERIES)
    clock = median(one.per_s for one in exact) / median(one.per_s for one in least)
    cpu = median(one.cpu_us for one in least) / median(one.cpu_us for one in exact)
    print(f"exactly once / at least once, medians of {len(exact)}: {clock:.2f} by the clock, {cpu:.2f} per CPU second")


if __name__ == "__main__":
    main()
