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
from bench.memory import bound_topics
from bench.pipeline import await_total, hit_path, publish, texts, total
from streams.broker import Broker
from streams.control import create_ray
from streams.settings import load_settings
from streams.up import Pipeline

DELIVERIES = ("exactly_once", "at_least_once")
WARM_RUNS = 2
HITS = "manyray_dedup_hits_total"
HIT_SHARE_LEAST = 0.999


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
    create_ray(settings)
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


def measure(pipeline: Pipeline, posts: list[str], run: str) -> Speed:
    """One run of the hit path.

    Raises:
        SystemExit: it was not the hit path.
    """
    before = total(pipeline, "dedup", HITS)
    speed = hit_path(pipeline, posts, run)
    share = (total(pipeline, "dedup", HITS) - before) / len(posts)
    if share < HIT_SHARE_LEAST:
        raise SystemExit(f"only {share:.1%} of the posts were found")
    return speed


def main() -> None:
    """Run both and print figures with the machine."""
    parser = argparse.ArgumentParser(description="what exactly once costs")
    parser.add_argument("--posts", type=int, default=400_000, help="posts of a run")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each side, in turn")
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
            bound_topics(pipeline.settings)
        speeds: dict[str, list[Speed]] = {delivery: [] for delivery in DELIVERIES}
        for repeat in range(arguments.repeats):
            for delivery in DELIVERIES if repeat % 2 == 0 else DELIVERIES[::-1]:
                speeds[delivery].append(measure(pipelines[delivery], posts, f"hit{repeat}"))
                print(f"{delivery:>13} {repeat + 1}:  {speeds[delivery][-1]}", flush=True)
    pairs = list(zip(*(speeds[delivery] for delivery in DELIVERIES), strict=True))
    for what, ratios in {
        "by the clock": [exact.per_s / least.per_s for exact, least in pairs],
        "per CPU second": [least.cpu_us / exact.cpu_us for exact, least in pairs],
    }.items():
        told = f"median of {len(ratios)} pairs {median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}"
        print(f"exactly once / at least once {what}: {told}")


if __name__ == "__main__":
    main()
