"""Replays of posts that are all hits: their speed beside that of the same posts as they come, and their memory.

    python -m bench.replays [--posts N] [--repeats N] [--long N]

A replay is measured from the first of its posts that is looked up on, as live posts are; its process does what ingest
does for these.
"""

import argparse
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from confluent_kafka.admin import AdminClient, NewTopic  # pyright: ignore[reportPrivateImportUsage]

from bench.machine import Speed, cpu_s, describe, rss_mib
from bench.pipeline import await_total, hit_path, publish, texts, total
from manyray.replaying import Wanted, begin_replay
from streams import clock
from streams.settings import Settings, load_settings
from streams.up import Pipeline

OLD, LONG = "old", "long"
TELL_S = 20.0
POSTS = "manyray_dedup_posts_total"


def begin(settings: Settings, name: str, topic: str = OLD) -> subprocess.Popen[bytes]:
    """A process that replays all posts of a topic."""
    begin_replay(settings, Wanted(topic, settings.ray, name=name))
    command = [sys.executable, "-m", "manyray", "jobs", "resume", name, "--log-level", "warning"]
    command += ["--bootstrap-servers", settings.bootstrap_servers or "", "--set", f"data_dir={settings.data_dir}"]
    return subprocess.Popen([*command, "--set", f"model={settings.model}"], stdout=subprocess.PIPE)


def replay_path(pipeline: Pipeline, count: int, name: str) -> Speed:
    """A replay's process and dedup together, as `hit_path`."""
    before = total(pipeline, "dedup", POSTS)
    with begin(pipeline.settings, name) as replaying:
        pids = [replaying.pid, *[pid for role, pid in pipeline.pids.items() if role.startswith("dedup")]]
        await_total(pipeline, "dedup", POSTS, before + 1)
        began_cpu_s, began_s = sum(map(cpu_s, pids)), clock.perf_s()
        left = before + count - total(pipeline, "dedup", POSTS)
        await_total(pipeline, "dedup", POSTS, before + count)
        wall_s, used_s = clock.perf_s() - began_s, sum(map(cpu_s, pids)) - began_cpu_s
    return Speed(left / wall_s, used_s / left * 1e6)


def memory_path(pipeline: Pipeline, posts: list[str], count: int) -> None:
    """Replay so many posts as one job, and print now and then what each process holds."""
    for number in range(0, count, len(posts)):
        publish(pipeline.settings, posts[: count - number], f"{LONG}{number}", LONG)
    before, began_s = total(pipeline, "dedup", POSTS), clock.perf_s()

    def tell() -> float:
        done = total(pipeline, "dedup", POSTS) - before
        held = ", ".join(f"{name} {rss_mib(pid):.0f}" for name, pid in pids.items())
        print(f"{clock.perf_s() - began_s:4.0f} s: {done:>10,.0f} posts; MiB: {held}", flush=True)
        return done

    with begin(pipeline.settings, LONG, LONG) as replaying:
        pids = {"replay": replaying.pid, **pipeline.pids}
        while replaying.poll() is None:
            tell()
            with suppress(subprocess.TimeoutExpired):
                replaying.wait(TELL_S)
    del pids["replay"]
    if tell() != count or replaying.returncode:
        raise SystemExit(f"{count:,} posts were to be looked up")


def main() -> None:
    """Run both in turn and print figures with the machine."""
    parser = argparse.ArgumentParser(description="the speed and memory of replays")
    parser.add_argument("--posts", type=int, default=500_000, help="posts of a run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, in turn")
    parser.add_argument("--long", type=int, default=0, help="then one job of so many posts, for the memory")
    arguments = parser.parse_args()
    print(describe())
    posts = texts(arguments.posts, arguments.posts // 10)
    with tempfile.TemporaryDirectory(prefix="manyray-bench-") as folder:
        settings = load_settings(data_dir=Path(folder), model="hash", log_level="warning")
        with Pipeline(settings) as pipeline:
            pipeline.wait_ready(90)
            settings = pipeline.settings
            admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
            for future in admin.create_topics([NewTopic(name, 4, 1) for name in (OLD, LONG)]).values():
                future.result()
            publish(settings, posts, OLD, OLD)
            publish(settings, posts, "warm")
            await_total(pipeline, "dedup", POSTS, len(posts))
            misses = total(pipeline, "dedup", "manyray_dedup_misses_total")
            await_total(pipeline, "encode", "manyray_encode_posts_total", misses)
            live: list[Speed] = []
            replayed: list[Speed] = []
            for repeat in range(1, arguments.repeats + 1):
                live.append(hit_path(pipeline, posts, f"hit{repeat}"))
                print(f"live hits {repeat}:     {live[-1]}", flush=True)
                replayed.append(replay_path(pipeline, len(posts), f"hits-{repeat}"))
                print(f"replayed hits {repeat}: {replayed[-1]}", flush=True)
            if arguments.long:
                memory_path(pipeline, posts, arguments.long)
            if not arguments.repeats:
                return
            fastest = max(speed.per_s for speed in replayed) / max(speed.per_s for speed in live)
            cheapest = min(speed.cpu_us for speed in live) / min(speed.cpu_us for speed in replayed)
            told = f"{fastest:.2f} by the clock, {cheapest:.2f} per CPU second"
            print(f"replayed / live, best of {arguments.repeats}: {told}")


if __name__ == "__main__":
    main()
