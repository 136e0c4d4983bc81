"""Row 18: replays of posts that are known and of new ones, under what fails around them."""

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # pyright: ignore[reportPrivateImportUsage]

from bench.load import Load
from faults.brokers import only_broker_killed
from faults.fault import FAULTS, Strike, add
from faults.run import FaultError, Run
from faults.state import disk_of_broker_full
from streams import clients
from streams.jobs import Jobs

OLD, JOB = "old", "again"
POSTS, RATE = 30_000, 1_500
"""A replay of so many posts, so many a second, outlasts what fails meanwhile."""


def _publish_old(run: Run) -> None:
    """The first of the load's own posts once more, on a topic that no ingest reads."""
    servers = run.cluster.direct_servers
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})  # its end is that of what it was asked for
    (made,) = admin.create_topics([NewTopic(OLD, 4, 1)]).values()
    made.result(30)
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 50, "log_level": 0})
    for value in islice(Load(run.seed).values(), POSTS):
        clients.produce(producer, OLD, value)
    if producer.flush(60):
        raise FaultError(f"{OLD} was not published")


@contextmanager
def _replaying(run: Run) -> Generator[None]:
    """A replay is under way in the block, and ends by itself after it."""
    _publish_old(run)
    settings = run.settings
    command = [sys.executable, "-m", "manyray", "replay", OLD, "--name", JOB, "--rate", f"{RATE}/s"]
    command += ["--bootstrap-servers", settings.bootstrap_servers or "", "--set", f"data_dir={settings.data_dir}"]
    with subprocess.Popen([*command, "--set", "model=hash"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as it:
        strikes = False
        try:
            jobs = Jobs(settings)
            run.wait_until(lambda: it.poll() is not None or _is_begun(jobs), "the replay has begun")
            if it.poll() is None:
                yield
                strikes = it.poll() is None
                run.wait_until(lambda: it.poll() is not None, "the replay ends")
        finally:
            it.kill()
            told = (it.stdout.read() if it.stdout else b"").decode()
    if it.returncode or not strikes:
        raise FaultError(f"the replay ended with {it.returncode}, struck: {strikes}; {told[-500:]}")


def _is_begun(jobs: Jobs) -> bool:
    """Whether some of the replay is committed."""
    found = jobs.read()
    return JOB in found and found[JOB][1].counts.posts > 0


def _beside_a_replay(strike: Strike, run: Run) -> None:
    with _replaying(run):
        strike(run)


for _strike in (disk_of_broker_full, only_broker_killed):
    _fault = FAULTS[_strike.__name__.replace("_", "-")]
    add(
        replace(
            _fault, name=f"replay-{_fault.name}", row=18, strike=partial(_beside_a_replay, _strike), replays=(OLD, JOB)
        )
    )
