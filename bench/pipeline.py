"""The pipeline's speed: the hit path beside a raw Kafka loop, and the encoder's share of the miss path.

    python -m bench.pipeline [--posts N] [--misses N] [--repeats N]

Posts are drawn with Zipf-distributed repeats from sample texts made distinct by a number.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # pyright: ignore[reportPrivateImportUsage]

from bench.machine import Speed, cpu_s, describe
from encoders.batching import windows
from encoders.encoder import Encoder
from encoders.engine import Engine
from encoders.load import load_encoder, warm_up
from schemas.post import Post, encode_post
from streams import clients, clock
from streams.metrics import read_metrics
from streams.settings import Settings, load_settings
from streams.up import Pipeline

SAMPLE = Path(__file__).parent.parent / "manyray" / "sample_posts.txt"
STALL_S = 120.0
POLL_S = 0.1
"""Seldom: the process that is measured answers each poll."""


def texts(count: int, distinct: int, seed: int = 1) -> list[str]:
    """`count` texts of `distinct` different ones, the n-th most frequent of them with a share of about 1/n."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    ranks = np.random.default_rng(seed).zipf(1.1, size=count) % distinct
    return [f"{lines[rank % len(lines)]} {rank}" for rank in ranks.tolist()]


def publish(settings: Settings, posts: list[str], run: str, topic: str | None = None) -> None:
    """Send posts and wait until the broker has them."""
    producer = Producer({"bootstrap.servers": settings.bootstrap_servers, "linger.ms": 5, "compression.type": "lz4"})
    for number, text in enumerate(posts):
        clients.produce(producer, topic or settings.posts_topics[0], encode_post(Post(f"{run}-{number}", text)))
    producer.flush()


def create_raw_topics(settings: Settings) -> None:
    """Those of the raw loop."""
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    for future in admin.create_topics([NewTopic(name, 4, 1) for name in ("raw-input", "raw-output")]).values():
        future.result()


def total(pipeline: Pipeline, role: str, name: str) -> float:
    """The sum of a metric over its labels, of one role's process."""
    url = next(url for process, url in pipeline.metrics_urls.items() if process.startswith(role))
    return sum(sample.value for sample in read_metrics(url) if sample.name == name)


def await_total(pipeline: Pipeline, role: str, name: str, least: float) -> None:
    """Wait until a metric has reached a value."""
    deadline_s = clock.monotonic_s() + STALL_S
    while total(pipeline, role, name) < least:
        pipeline.raise_failure()
        if clock.monotonic_s() > deadline_s:
            raise SystemExit(f"{name} of {role} did not reach {least:.0f} in {STALL_S:.0f} s")
        clock.sleep_s(POLL_S)


def hit_path(pipeline: Pipeline, posts: list[str], run: str) -> Speed:
    """Ingest and dedup together on a backlog of posts that were all embedded before, from the first on that is read."""
    before = total(pipeline, "dedup", "manyray_dedup_posts_total")
    seen = total(pipeline, "ingest", "manyray_ingest_posts_total")
    pids = [pid for name, pid in pipeline.pids.items() if name.startswith(("ingest", "dedup"))]
    subprocess.run(["kill", "-STOP", str(pids[0])], check=True)  # so that the publisher's CPU is not in the figure
    publish(pipeline.settings, posts, run)
    subprocess.run(["kill", "-CONT", str(pids[0])], check=True)
    await_total(pipeline, "ingest", "manyray_ingest_posts_total", seen + 1)  # it may have to join its group again
    began_cpu_s, began_s = sum(map(cpu_s, pids)), clock.perf_s()
    left = before + len(posts) - total(pipeline, "dedup", "manyray_dedup_posts_total")
    await_total(pipeline, "dedup", "manyray_dedup_posts_total", before + len(posts))
    wall_s, used_s = clock.perf_s() - began_s, sum(map(cpu_s, pids)) - began_cpu_s
    return Speed(left / wall_s, used_s / left * 1e6)


def raw_loop(settings: Settings, source: str, count: int) -> Speed:
    """The yardstick, in a process of its own, on the same posts."""
    command = [sys.executable, "-m", "bench.raw_loop", settings.bootstrap_servers, source, "raw-output", str(count)]
    wall_s, used_s = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    return Speed(count / wall_s, used_s / count * 1e6)


def bench_hits(posts_count: int, repeats: int, folder: Path) -> None:
    """Raw loop and hit path in turn, on one broker."""
    settings = load_settings(data_dir=folder / "hits", model="hash", log_level="warning")
    posts = texts(posts_count, posts_count // 10)
    with Pipeline(settings) as pipeline:
        pipeline.wait_ready(90)
        settings = pipeline.settings
        create_raw_topics(settings)
        publish(settings, posts, "raw", "raw-input")
        publish(settings, posts, "warm")
        await_total(pipeline, "dedup", "manyray_dedup_posts_total", len(posts))
        await_total(
            pipeline, "encode", "manyray_encode_posts_total", total(pipeline, "dedup", "manyray_dedup_misses_total")
        )
        raw: list[Speed] = []
        hits: list[Speed] = []
        for repeat in range(repeats):
            raw.append(raw_loop(settings, "raw-input", len(posts)))
            print(f"raw loop {repeat + 1}:          {raw[-1]}")
            before = total(pipeline, "dedup", "manyray_dedup_hits_total")
            hits.append(hit_path(pipeline, posts, f"hit{repeat}"))
            share = (total(pipeline, "dedup", "manyray_dedup_hits_total") - before) / len(posts)
            print(f"ingest + dedup {repeat + 1}:    {hits[-1]}   ({share:.1%} hits, exactly once)")
    best_raw, best_hit = min(speed.cpu_us for speed in raw), min(speed.cpu_us for speed in hits)
    print(f"hit path / raw loop, per CPU second, best of {repeats}: {best_raw / best_hit:.2f}")


def encoder_alone(encoder: Encoder, posts: list[str]) -> Speed:
    """The yardstick of the miss path: windows of the pipeline's size through the engine, and no Kafka."""
    with Engine(encoder, encoder.batch_tokens) as engine:
        began_cpu_s, began_s = clock.cpu_s(), clock.perf_s()
        futures = [engine.submit(window) for window in windows(posts, engine.window_tokens)]
        for future in futures:
            future.result()
        wall_s, used_s = clock.perf_s() - began_s, clock.cpu_s() - began_cpu_s
    return Speed(len(posts) / wall_s, used_s / len(posts) * 1e6)


def miss_path(posts: list[str], folder: Path) -> tuple[Speed, float]:
    """A whole new pipeline on posts that were never seen: its speed with the encoder's CPU, and the encoder's share."""
    with Pipeline(load_settings(data_dir=folder, log_level="warning")) as pipeline:
        pipeline.wait_ready(90)
        pid = pipeline.pids["encode"]
        busy_s = total(pipeline, "encode", "manyray_encode_seconds_sum")
        began_cpu_s, began_s = cpu_s(pid), clock.perf_s()
        publish(pipeline.settings, posts, "miss")
        await_total(pipeline, "encode", "manyray_encode_posts_total", len(posts))
        wall_s, used_s = clock.perf_s() - began_s, cpu_s(pid) - began_cpu_s
        busy_s = total(pipeline, "encode", "manyray_encode_seconds_sum") - busy_s
    return Speed(len(posts) / wall_s, used_s / len(posts) * 1e6), busy_s / wall_s


def bench_misses(count: int, repeats: int, folder: Path) -> None:
    """The encoder alone and the whole pipeline in turn, on the same distinct posts."""
    posts = [f"{text} {number}" for number, text in enumerate(texts(count, count, seed=2))]
    encoder = load_encoder("minilm")
    warm_up(encoder, encoder.batch_tokens)
    alone: list[Speed] = []
    whole: list[Speed] = []
    for repeat in range(repeats):
        alone.append(encoder_alone(encoder, posts))
        print(f"encoder alone {repeat + 1}:     {alone[-1]}")
        speed, share = miss_path(posts, folder / f"misses{repeat}")
        whole.append(speed)
        print(f"whole pipeline {repeat + 1}:    {speed}   (CPU of encode, which computed {share:.1%} of the time)")
    fastest = max(speed.per_s for speed in whole) / max(speed.per_s for speed in alone)
    cheapest = min(speed.cpu_us for speed in alone) / min(speed.cpu_us for speed in whole)
    print(f"miss path / encoder alone, best of {repeats}: {fastest:.2f} by the clock, {cheapest:.2f} per CPU second")


def main() -> None:
    """Run both and print figures with the machine."""
    parser = argparse.ArgumentParser(description="the pipeline's speed")
    parser.add_argument("--posts", type=int, default=200_000, help="posts on the hit path")
    parser.add_argument("--misses", type=int, default=3_000, help="distinct posts on the miss path")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, in turn")
    arguments = parser.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory(prefix="manyray-bench-") as folder:
        bench_hits(arguments.posts, arguments.repeats, Path(folder))
        bench_misses(arguments.misses, arguments.repeats, Path(folder))


if __name__ == "__main__":
    main()
