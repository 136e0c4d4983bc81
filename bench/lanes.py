"""What live posts pay for a replay: their time through the pipeline beside one that saturates a stage, and alone.

Replayed misses saturate the encoder, replayed hits ingest's code and dedup.

    python -m bench.lanes [--rate N] [--seconds N] [--repeats N]

A time is from a post's record to its embedding's arrival at a subscriber. All posts are distinct and are computed.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Producer, TopicPartition
from confluent_kafka.admin import NewTopic  # pyright: ignore[reportPrivateImportUsage]

from bench.machine import describe
from bench.pipeline import SAMPLE, STALL_S, publish
from manyray.job_orders import change_job
from manyray.rays import find_embeddings_topic
from schemas.post import Post, encode_post
from schemas.public_pb2 import Embedding
from streams import clients, clock
from streams.settings import Settings, load_settings
from streams.up import Pipeline

ALONE, MISSES, HITS = "alone", "misses", "hits"
WARM_S = 2.0
REST_S = 3.0
"""Nothing comes for so long between two runs."""
_POSTS_A_S, _HITS_A_S = 1_000, 60_000
"""More than come out here: a replay is to outlast the live posts."""


@dataclass(slots=True)
class Arrivals:
    """When posts were written and when their embeddings came, in ms since the epoch, by the run that sent them."""

    times_ms: dict[str, list[tuple[int, int]]] = field(default_factory=dict[str, list[tuple[int, int]]])
    changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, run: str, posted_ms: int, arrived_ms: int) -> None:
        """Note one; for the subscriber's thread, which holds `changed`."""
        self.times_ms.setdefault(run, []).append((posted_ms, arrived_ms))

    def await_rest(self) -> None:
        """Wait until nothing comes any more, of a replay that was cancelled before."""
        with self.changed:
            while self.changed.wait(REST_S):
                pass

    def count(self, run: str) -> int:
        """How many came of a run."""
        with self.changed:
            return len(self.times_ms.get(run, ()))

    def await_posts(self, run: str, count: int) -> list[tuple[int, int]]:
        """All times of a run, once so many posts of it came. SystemExit: they did not."""
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.times_ms.get(run, ())) >= count, STALL_S):
                raise SystemExit(f"{run}: {len(self.times_ms.get(run, ()))} of {count} posts came in {STALL_S:.0f} s")
            return list(self.times_ms[run])


@contextmanager
def subscribed(settings: Settings) -> Generator[Arrivals]:
    """What arrives at a plain consumer of the ray's embeddings while this stands."""
    arrivals, stop = Arrivals(), threading.Event()

    def subscribe() -> None:
        with closing(clients.reader(settings)) as reader:
            topic = find_embeddings_topic(settings, settings.ray)
            reader.assign([TopicPartition(topic, at, OFFSET_BEGINNING) for at in range(settings.partitions)])
            while not stop.is_set():
                messages = [message for message in reader.consume(1_000, 0.01) if message.error() is None]
                if not messages:
                    continue
                arrived_ms = clock.now_ms()
                with arrivals.changed:
                    for message in messages:
                        run = (message.key() or b"").decode().rpartition("-")[0]
                        is_live = run.startswith("live")  # parsing all others would take longer than the pipeline
                        posted_ms = Embedding.FromString(message.value() or b"").posted_ms if is_live else 0
                        arrivals.add(run, posted_ms, arrived_ms)
                    arrivals.changed.notify_all()

    with ThreadPoolExecutor(1) as pool:
        subscribing = pool.submit(subscribe)
        try:
            yield arrivals
        finally:
            stop.set()
            subscribing.result()  # an error of its own is why nothing came


def texts() -> Iterator[str]:
    """Distinct ones, without end."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    number = 0
    while True:
        yield f"{lines[number % len(lines)]} {number}"
        number += 1


@dataclass(frozen=True, slots=True)
class Live:
    """Sends live posts at a steady rate; its producer is connected by the first of them, which is none to measure."""

    producer: Producer
    topic: str
    posts: Iterator[str]
    rate: float

    def send(self, run: str, seconds: float) -> int:
        """Send for so long; how many there were."""
        began_s, count = clock.monotonic_s(), int(self.rate * seconds)
        for number in range(count):
            clock.sleep_s(max(0.0, began_s + number / self.rate - clock.monotonic_s()))
            clients.produce(self.producer, self.topic, encode_post(Post(f"{run}-{number}", next(self.posts))))
            self.producer.poll(0)
        self.producer.flush()
        return count


def quantiles(took_ms: list[int]) -> str:
    """Median and 99th percentile, in words."""
    p50, p99 = np.percentile(took_ms, [50, 99])
    return f"p50 {p50:5.0f} ms, p99 {p99:5.0f} ms"


def took(times_ms: list[tuple[int, int]]) -> list[int]:
    """How long each took, in ms."""
    return [arrived - posted for posted, arrived in times_ms]


def run_alone(live: Live, arrivals: Arrivals, number: int, seconds: float) -> list[int]:
    """Live posts and nothing else; returns how long each took, in ms."""
    run = f"live-alone-{number}"
    arrivals.await_rest()
    took_ms = took(arrivals.await_posts(run, live.send(run, seconds)))
    print(f"live alone {number}:                  {quantiles(took_ms)}", flush=True)
    return took_ms


def run_beside(
    live: Live, arrivals: Arrivals, what: str, number: int, *, seconds: float, settings: Settings
) -> list[int]:
    """Live posts beside a replay that was begun before them and outlasts them; as `run_alone`.

    Afterwards the replay goes on for as long alone, and is cancelled.
    """
    run, name = f"live-beside-{what}-{number}", f"{what}-{number}"
    source = f"old-{what}"
    arrivals.await_rest()
    command = [sys.executable, "-m", "manyray", "replay", source, "--name", name, "--log-level", "warning"]
    command += ["--bootstrap-servers", settings.bootstrap_servers or "", "--set", f"data_dir={settings.data_dir}"]
    if what == MISSES:
        command += ["--from", f"0:{(number - 1) * old_posts(seconds)}", "--to", f"0:{number * old_posts(seconds)}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as replaying:
        before = arrivals.count(source)
        arrivals.await_posts(source, before + 1)
        began_ms = clock.now_ms()
        count = live.send(run, seconds)
        ended_ms = clock.now_ms()
        took_ms = took(arrivals.await_posts(run, count))
        clock.sleep_s(seconds)
        stopped_ms = clock.now_ms()
        change_job(settings, name, order="cancel")
        told = replaying.communicate()[0].decode().strip()
    came_ms = np.array([came for _, came in arrivals.await_posts(source, before + 1)[before:]])
    during = ((came_ms >= began_ms) & (came_ms < ended_ms)).sum() / (ended_ms - began_ms) * 1e3
    after = ((came_ms >= ended_ms) & (came_ms < stopped_ms)).sum() / (stopped_ms - ended_ms) * 1e3
    print(
        f"live beside replayed {what} {number}: {quantiles(took_ms)}; "
        f"of the replay {during:,.0f} posts/s, and {after:,.0f} after the live ones ({told})",
        flush=True,
    )
    return took_ms


def prepare(settings: Settings, posts: Iterator[str], seconds: float, repeats: int) -> None:
    """Topics of old posts: distinct ones, some for each run, and a hundred that are known after the first run."""
    admin = clients.admin_client(settings)
    new = [NewTopic(f"old-{what}", 1, 1) for what in (MISSES, HITS)]
    for future in admin.create_topics(new).values():
        future.result()
    publish(settings, [next(posts) for _ in range(old_posts(seconds) * repeats)], f"old-{MISSES}", f"old-{MISSES}")
    known = [next(posts) for _ in range(100)]
    publish(settings, known * int(_HITS_A_S * 2 * seconds / 100), f"old-{HITS}", f"old-{HITS}")


def old_posts(seconds: float) -> int:
    """How many misses a run's replay has: more than come out in its time."""
    return int(_POSTS_A_S * 2 * seconds)


def main() -> None:
    """Run both in turn and print figures with the machine."""
    parser = argparse.ArgumentParser(description="what live posts pay for a replay")
    parser.add_argument("--rate", type=float, default=12.0, help="live posts a second")
    parser.add_argument("--seconds", type=float, default=15.0, help="of live posts in each run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, in turn")
    arguments = parser.parse_args()
    print(describe())
    runs: dict[str, list[list[int]]] = {ALONE: [], MISSES: [], HITS: []}
    with ExitStack() as held:
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="manyray-bench-"))
        settings = load_settings(data_dir=Path(folder), log_level="warning")
        pipeline = held.enter_context(Pipeline(settings))
        pipeline.wait_ready(90)
        settings = pipeline.settings
        arrivals = held.enter_context(subscribed(settings))
        live = Live(clients.producer(settings), settings.posts_topics[0], texts(), arguments.rate)
        prepare(settings, live.posts, arguments.seconds, arguments.repeats)
        arrivals.await_posts("warm", live.send("warm", WARM_S))
        for number in range(1, arguments.repeats + 1):
            runs[ALONE].append(run_alone(live, arrivals, number, arguments.seconds))
            for what in (MISSES, HITS):
                took_ms = run_beside(live, arrivals, what, number, seconds=arguments.seconds, settings=settings)
                runs[what].append(took_ms)
    p99s = {what: [float(np.percentile(took_ms, 99)) for took_ms in found] for what, found in runs.items()}
    of_all = {what: float(np.percentile([*chain(*found)], 99)) for what, found in runs.items()}
    print(f"live alone, all runs: p99 {of_all[ALONE]:.0f} ms")
    for what in (MISSES, HITS):
        pairs = [beside / alone for beside, alone in zip(p99s[what], p99s[ALONE], strict=True)]
        told = f"median of {len(pairs)} pairs {median(pairs):.1f}, from {min(pairs):.1f} to {max(pairs):.1f}"
        of_runs = f"of all runs' posts {of_all[what]:.0f} ms, {of_all[what] / of_all[ALONE]:.2f}"
        print(f"live p99 beside replayed {what} / alone: {told}; {of_runs}")


if __name__ == "__main__":
    main()
