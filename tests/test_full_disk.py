"""A full disk under a running role or broker: one clear line, an exit code that is not 0, and nothing lost."""

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from confluent_kafka import Producer

from streams.control import create_ray
from streams.settings import Settings
from streams.up import Pipeline
from tests.oracle import await_embeddings, post, read_embeddings, send
from tests.test_cli import launch, manyray

pytestmark = pytest.mark.broker

POSTS = 30_000
"""Their vectors are 46 MB: more than the tables may hold in memory, and far more than the small disk."""


def test_dedup_ends_with_one_line_on_a_full_disk_and_loses_nothing(settings: Settings, small_disk: Path) -> None:
    """Dedup names the disk and the remedy and exits with 1; on a larger disk it goes on where it was."""
    create_ray(settings)
    with Pipeline(settings, roles={"ingest": 1, "encode": 1}) as pipeline:
        pipeline.wait_ready(90)
        send(settings, [post(str(number), f"text {number}") for number in range(POSTS)])
        flags = [f"--set={name}={getattr(settings, name)}" for name in ("bootstrap_servers", "ray", "model")]
        # Of a small table little is held in memory, so that it comes to the disk soon.
        flags += [f"--set=posts_topics={settings.posts_topics[0]}", "--set=table_disk_mib=64"]
        ended = subprocess.run(
            [sys.executable, "-m", "manyray", "dedup", *flags, f"--data-dir={small_disk}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 1
        said = [line for line in ended.stderr.splitlines() if line.startswith("manyray: ")]
        assert len(said) == 1
        assert said[0].startswith("manyray: disk full under ")
        assert "Traceback" not in ended.stderr
        pipeline.start_role("dedup")
        await_embeddings(settings, POSTS)
    seen = read_embeddings(settings)
    assert seen.ids.total() == len(seen.ids) == POSTS


def test_up_on_a_disk_that_is_full_already(small_disk: Path) -> None:
    """It cannot even write its lock or settings: one line, with the remedy."""
    fill(small_disk / "others")
    done = manyray("up", "--model", "hash", f"--data-dir={small_disk / 'data'}", cwd=small_disk.parent)
    assert done.returncode == 1
    assert re.fullmatch(rf"manyray: .*{small_disk}.*: free space, or choose another .*--data-dir\n", done.stderr)


def fill(path: Path) -> None:
    """Leave no byte on the disk of `path`."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4_096))


def test_up_ends_with_one_line_on_a_full_disk(small_disk: Path) -> None:
    """When the embedded broker has no space left, `up` ends at once, naming the disk and the remedy."""
    command = ("up", "--model", "hash", f"--data-dir={small_disk / 'data'}")
    with launch(*command, cwd=small_disk.parent, stderr=subprocess.PIPE) as up:
        assert up.stderr is not None
        address = next(line for line in up.stderr if line.startswith("manyray is up")).split()[5].rstrip(";")
        producer = Producer({"bootstrap.servers": address, "message.timeout.ms": 60_000, "log_level": 0})
        for number in range(200):
            producer.produce("posts", post(str(number), os.urandom(30_000).hex()))
        while up.poll() is None:
            producer.poll(0.2)
        producer.purge()
        said = up.stderr.read().splitlines()
        assert up.returncode == 1
    assert said[-1].startswith(f"manyray: disk full under {small_disk}")
    assert "--data-dir" in said[-1]
    assert not [line for line in said if "Traceback" in line or "does not end" in line]
