"""A full disk under a running role: one clear line, an exit code that is not 0, and nothing lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from streams.settings import Settings
from streams.topics import create_topics
from streams.up import Pipeline
from streams.version import version_of
from tests.oracle import await_embeddings, post, read_embeddings, send

pytestmark = pytest.mark.broker


def test_dedup_ends_with_one_line_on_a_full_disk_and_loses_nothing(settings: Settings, small_disk: Path) -> None:
    """Dedup names the disk and the remedy and exits with 1; on a larger disk it goes on where it was."""
    create_topics(settings, version_of(settings))
    with Pipeline(settings, roles={"ingest": 1, "encode": 1}) as pipeline:
        pipeline.wait_ready(90)
        send(settings, [post(str(number), f"text {number}") for number in range(8_000)])
        flags = [f"--set={name}={getattr(settings, name)}" for name in ("bootstrap_servers", "ray", "model")]
        topic = f"--set=posts_topics={settings.posts_topics[0]}"
        ended = subprocess.run(
            [sys.executable, "-m", "manyray", "dedup", *flags, topic, f"--data-dir={small_disk}"],
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
        await_embeddings(settings, 8_000)
    seen = read_embeddings(settings)
    assert seen.ids.total() == len(seen.ids) == 8_000
