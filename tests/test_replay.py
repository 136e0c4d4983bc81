"""Laws of replays, on a real broker: what a range holds comes out once for each, whatever happens meanwhile."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions

from manyray.job_orders import change_job, forget_job, go_on
from manyray.replaying import run_replay
from schemas.errors import Fatal
from schemas.public_pb2 import Embedding
from streams import clients, failpoints
from streams.jobs import Job, Jobs
from streams.metrics import Metrics
from streams.ranges import TopicRanges
from streams.replay import Replay
from streams.settings import Settings
from streams.topics import Topics
from streams.up import Pipeline
from tests.oracle import post, read_records, read_rejected, remove, send, topics_of
from tests.replaying import begin, embedded, into, read, run
from tests.test_cli import flags, launch
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker

POSTS, CONTENTS = 2_000, 500
VERIFY = Path(__file__).parents[1] / "examples" / "verify.py"


def replaying(settings: Settings, job: Job) -> Replay:
    """For who takes its steps one by one."""
    source = TopicRanges(settings, job.topic, job.ranges)
    return Replay(settings, topics_of(settings), Metrics.create(), job, source=source, stop=threading.Event())


@pytest.fixture
def old(settings: Settings, topic: str) -> str:
    """A topic of 2,000 posts of 500 contents, six bad records and three tombstones; it is none that ingest reads."""
    records = [post(f"old{number}", f"text {number % CONTENTS}") for number in range(POSTS)]
    producer = Producer({"bootstrap.servers": settings.bootstrap_servers})
    for number, value in enumerate([*records, *[b"{}", b"{", b'{"id": "x"}'] * 2, *[None] * 3]):
        producer.produce(topic, value, key=f"key{number}", partition=number % 2)
    assert producer.flush(WAIT_S) == 0
    return topic


def test_a_range_comes_out_once(settings: Settings, pipeline: Pipeline, old: str) -> None:
    """Each post of it has one embedding, which names the job; a second job gives the same again, all of them hits."""
    done = run(settings, begin(settings, old, "first"))
    assert done.ended
    assert (done.counts.posts, done.counts.rejected, done.counts.tombstones, done.counts.gone) == (POSTS, 6, 3, 0)
    assert done.hits + done.misses == POSTS
    assert embedded(settings, "first") == Counter({f"old{number}": 1 for number in range(POSTS)})
    assert read_rejected(into(settings, old)).total() == 6
    command = [sys.executable, str(VERIFY), settings.bootstrap_servers or "", topics_of(settings).embeddings]
    told = subprocess.run([*command, "--posts", old, "--job", "first"], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told
    done = run(settings, begin(settings, old, "second"))
    assert (done.hits, done.misses) == (POSTS, 0)
    assert embedded(settings, "second") == embedded(settings, "first")


def test_a_range_is_fixed_when_it_begins(settings: Settings, pipeline: Pipeline, old: str) -> None:
    """What is written later, to whichever partition, is no part of it."""
    job = begin(settings, old, "fixed")
    send(into(settings, old), [post(f"late{number}", "late") for number in range(100)])
    admin = clients.admin_client(settings)
    for future in admin.create_partitions([NewPartitions(old, 3)]).values():
        future.result(30)
    assert run(settings, job).counts.posts == POSTS
    assert set(embedded(settings, "fixed")) == {f"old{number}" for number in range(POSTS)}


def test_offsets_and_times_choose_records(settings: Settings, pipeline: Pipeline, old: str) -> None:
    """Offsets mean the partitions that they name, from the first of them up to, and without, the last."""
    done = run(settings, begin(settings, old, "some", start="0:10", end="0:25"))
    assert done.counts.posts + done.counts.rejected + done.counts.tombstones == 15
    places = {
        (embedding.source_partition, embedding.source_offset)
        for record in read_records(settings, topics_of(settings).embeddings)
        for embedding in [Embedding.FromString(record.value() or b"")]
    }
    assert places <= {(0, offset) for offset in range(10, 25)}
    begin(settings, old, "today", start="1h", end="now")
    with pytest.raises(Fatal, match="holds no record from 2001-01-01 to 2001-01-02: choose another --from and --to"):
        begin(settings, old, "long-ago", start="2001-01-01", end="2001-01-02")


def test_what_retention_removes_is_told(settings: Settings, pipeline: Pipeline, old: str) -> None:
    """Before it begins it is refused where it was asked for; afterwards it is counted, and the rest comes out."""
    job = begin(settings, old, "eaten")
    remove(settings, old, 200)
    with pytest.raises(Fatal, match=rf"{old}/0 holds offsets 200 to \d+, and 0 is not among them: retention removed"):
        begin(settings, old, "refused", start="0:0")
    done = run(settings, job)
    assert done.counts.gone == 200
    assert done.counts.posts + done.counts.rejected + done.counts.tombstones + 200 == POSTS + 9
    assert embedded(settings, "eaten").total() == done.counts.posts


def test_a_replay_that_is_killed_goes_on_where_it_was(
    settings: Settings, pipeline: Pipeline, old: str, tmp_path: Path
) -> None:
    """kill -9 between what it sent and its commit, and a second time: nothing is lost, nothing comes twice."""
    job = begin(settings, old, "killed", rate=1_000.0)
    for _ in range(2):
        before = read(settings, job.name).counts.posts
        points = {failpoints.VARIABLE: str(tmp_path)}
        with launch("jobs", "resume", job.name, *flags(settings), cwd=tmp_path, env={**os.environ, **points}) as runner:
            wait_until(lambda before=before: read(settings, job.name).counts.posts > before, "it is at work")
            (tmp_path / "replay.sent").write_text("hang 0.5, kill")
            assert runner.wait(WAIT_S) == -signal.SIGKILL
    assert not read(settings, job.name).ended
    change_job(settings, job.name, rate=None)
    done = run(settings, job)
    assert done.counts.posts == POSTS
    assert (done.hits + done.misses, done.counts.rejected) == (POSTS, 6)
    assert embedded(settings, job.name) == Counter({f"old{number}": 1 for number in range(POSTS)})
    assert read_rejected(into(settings, old)).total() == 6


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_a_second_process_takes_a_job_over(settings: Settings, pipeline: Pipeline, old: str, delivery: str) -> None:
    """The first one says so, and stops; between them everything comes out once, also where no broker fences it."""
    settings = settings.model_copy(update={"delivery": delivery})
    job = begin(settings, old, "twice", rate=1_000.0)
    with replaying(settings, job) as first:
        first.recover()
        wait_until(lambda: first.done.counts.posts > 0, "it has begun", first.step)
        change_job(settings, job.name, rate=None)
        run_replay(settings, job.name, threading.Event())
        with pytest.raises(Fatal, match="another process has taken over"):
            wait_until(lambda: False, "it is fenced", first.step)
    assert embedded(settings, job.name) == Counter({f"old{number}": 1 for number in range(POSTS)})


def test_a_job_can_be_paused_and_cancelled(settings: Settings, pipeline: Pipeline, old: str) -> None:
    """While it pauses it sends nothing; what it had sent when it is cancelled comes out; then it is at its end."""
    job = begin(settings, old, "paused", rate=1_000.0)
    with replaying(settings, job) as replay:
        replay.recover()
        wait_until(lambda: replay.done.counts.posts > 0, "it has begun", replay.step)
        change_job(settings, job.name, order="pause")
        wait_until(lambda: replay.job.order == "pause", "it hears of it", replay.step)
        at = replay.done.next_offsets
        for _ in range(20):
            replay.step()
        assert replay.done.next_offsets == at
        change_job(settings, job.name, order="cancel")
        wait_until(lambda: replay.done.ended, "it ends", replay.step)
    done = read(settings, job.name)
    assert done == replay.done
    assert 0 < done.counts.posts < POSTS
    assert embedded(settings, job.name).total() == done.counts.posts == done.hits + done.misses
    with pytest.raises(Fatal, match="replay paused is cancelled: begin another by `manyray replay`"):
        change_job(settings, job.name, order="run")
    forget_job(settings, job.name)
    assert job.name not in Jobs(settings).read()


def test_a_job_that_nobody_runs_is_cancelled_by_who_asks(settings: Settings, pipeline: Pipeline, old: str) -> None:
    """It has no process that would hear of it."""
    job = begin(settings, old, "alone")
    assert "alone of" in go_on(settings, job.name, "cancel", threading.Event())
    assert read(settings, job.name).ended
    assert not embedded(settings, job.name)


def test_every_refusal_names_the_remedy(settings: Settings, topics: Topics, old: str) -> None:
    """Two jobs of one name, another ray, version or topic, a job that there is none of or that is not at its end."""
    with pytest.raises(Fatal, match="no replay none; there is none yet: begin one by `manyray replay TOPIC`"):
        change_job(settings, "none", order="pause")
    begin(settings, old, "taken")
    for how, said in (
        ({"name": "taken"}, "there is a replay taken already, stopped: go on with it by `manyray jobs resume taken`"),
        ({"name": "A b"}, "--name A b is none: 1 to 64 of a-z"),
        ({"ray": "other"}, f'the settings serve ray {settings.ray}, and not other: set ray = "other"'),
        ({"ray": f"{settings.ray}@0123"}, "there is no version 0123 of this ray: there are "),
        ({"start": "yesterday"}, "--from yesterday is neither of beginning, now, a time"),
        ({"start": "7:0"}, f"topic {old} has partitions 0 to 1, and no 7: leave it out"),
        ({"filter": "lang =="}, "--filter lang == is no JMESPath expression"),
    ):
        with pytest.raises(Fatal, match=re.escape(said)):
            begin(settings, old, **{"name": "new", **how})  # pyright: ignore[reportArgumentType]
    with pytest.raises(Fatal, match="there is no topic nowhere: see"):
        begin(settings, "nowhere", "new")
    with pytest.raises(Fatal, match="no replay none; there are taken"):
        forget_job(settings, "none")
    with pytest.raises(Fatal, match="replay taken is stopped: end it first by `manyray jobs cancel taken`"):
        forget_job(settings, "taken")
