"""One run of a fault: brokers, roles, posts and subscriber; the fault; and the verdict of the oracle."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench.load import Load, Publisher
from faults.cluster import Cluster
from faults.fault import Fault
from faults.inside import await_ends, find_problems
from faults.live import Live
from faults.surroundings import clocks, disk, environment, logged_to, set_clock
from streams import clock, failpoints
from streams.control import create_ray
from streams.metrics import read_metrics
from streams.settings import Settings, load_settings
from streams.topics import Topics
from streams.up import ROLES, Pipeline
from streams.version import version_of

ROOT = Path(__file__).parent.parent
LOGS = ROOT / "build" / "faults"
WAIT_S = 180.0
"""For anything that is to happen; a fault that takes longer is told as a failure."""
STRUCK_AT = 0.1
"""Of the posts: so many have come out before the fault strikes."""
BACKLOG_S = 2.0
"""Before a fault strikes, at most so much of the load is under way: a backlog would hide that nothing is done."""
REST_RATE = 20_000
"""Posts a second once the fault is over: what is left of the load."""
GAUGES_S = 1.5
"""Longer than gauges take to say what is."""

_ENDED = re.compile(r"(\S+) ended \((.*)\): starting it again")
_FAILED = re.compile(r"transaction of (\S+) failed, to be retried: (.*)")
FAILURES = "manyray_transaction_failures_total"
Process = tuple[str, int]
"""A process's name and id."""


class FaultError(Exception):
    """A run could not be carried through; the message says what did not happen."""


@dataclass(frozen=True)
class Verdict:
    """What the oracle says of a run; `problems` is empty if all is well."""

    fault: str
    row: int
    seed: int
    posts: int
    rejected: int
    lost: int
    doubled: int
    recomputed: int
    silent_s: float
    """The longest that any flow of output was silent from the strike on."""
    seconds: float
    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])


class Run:
    """What a fault may touch while posts flow."""

    wait_s = WAIT_S
    """How long anything that is to happen may take."""

    def __init__(
        self,
        fault: Fault,
        cluster: Cluster,
        settings: Settings,
        pipeline: Pipeline,
        *,
        publisher: Publisher,
        live: Live,
        seed: int,
    ) -> None:
        self.fault = fault
        self.cluster = cluster
        self.settings = settings
        self.publisher = publisher
        self.load = publisher.load
        self.topics = Topics.of(settings, version_of(settings))
        self.pipeline = pipeline
        self.live = live
        self.seed = seed
        self.random = np.random.default_rng(seed)
        self.notes: list[str] = []
        self.points = Path(os.environ[failpoints.VARIABLE])

    def arm(self, point: str, action: str) -> None:
        """Arm a failpoint; written beside and moved, so that nobody reads half of it."""
        fresh = self.points / f".{point}"
        fresh.write_text(action)
        fresh.rename(self.points / point)

    def strike_at(self, point: str, action: str) -> None:
        """Arm a failpoint, and wait until a role reached it."""
        self.arm(point, action)
        self.wait_until(lambda: not (self.points / point).exists(), f"{point} is reached")

    def note(self, text: str) -> None:
        """Tell a figure, beside the verdict."""
        self.notes.append(text)

    def set_clock(self, whose: str, seconds: float) -> None:
        """Shift the clock of `roles` or `brokers`."""
        set_clock(self.points, whose, seconds)

    def pids(self, role: str) -> dict[str, int]:
        """The processes of a role by name; of one that has ended, the id that it had."""
        return {name: pid for name, pid in self.pipeline.pids.items() if name.partition("-")[0] == role}

    def kill(self, role: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal every process of a role, as an operator or the kernel does."""
        reached = 0
        for pid in self.pids(role).values():
            with contextlib.suppress(ProcessLookupError):  # it ended, and is about to be started again
                os.kill(pid, number)
                reached += 1
        if not reached:
            raise FaultError(f"there is no process of {role} to be signalled")

    def samples(self, role: str, metric: str) -> list[float]:
        """The values of a metric, of all labels, of the processes of a role that answer."""
        return [value for process in self.pids(role) for value in self._read(process, metric)]

    def by_process(self, metric: str) -> dict[Process, float]:
        """The sum of a metric, of all labels, in each process; 0 in one that does not answer."""
        return {(process, pid): sum(self._read(process, metric)) for process, pid in self.pipeline.pids.items()}

    def _read(self, process: str, metric: str) -> list[float]:
        try:
            return [one.value for one in read_metrics(self.pipeline.metrics_urls[process]) if one.name == metric]
        except (OSError, KeyError):  # it has ended meanwhile
            return []

    def failed_since(self, before: Mapping[Process, float]) -> list[Process]:
        """The processes that ended since, or had more transactions fail than before."""
        now = self.by_process(FAILURES)
        return [process for process, count in before.items() if now.get(process, math.inf) > count]

    def await_end(self, role: str, pid: int) -> int:
        """Wait until the only process of a role is no longer that one; the new one's id."""
        self.wait_until(lambda: pid not in self.pids(role).values(), f"{role} ends, and is started again")
        (new,) = self.pids(role).values()
        return new

    def rest(self, seconds: float) -> None:
        """Let a fault last."""
        clock.sleep_s(seconds)
        self.raise_failure()

    def wait_until(self, true: Callable[[], object], what: str) -> None:
        """Wait for something to happen.

        Raises:
            FaultError: it did not, or a role was given up meanwhile.
        """
        deadline_s = clock.monotonic_s() + self.wait_s
        while not true():
            self.raise_failure()
            if clock.monotonic_s() > deadline_s:
                raise FaultError(f"not within {self.wait_s:.0f} s: {what}")
            clock.sleep_s(0.02)

    def await_flow(self) -> None:
        """Wait until every flow has brought posts that were published from now on."""
        from_ms = clock.now_ms()
        self.wait_until(lambda: self.live.newest_ms() > from_ms, "new posts come out of every flow")

    def await_hits(self) -> None:
        """Wait until tables have given vectors from now on: the encoder's repeats are cached too, to a subscriber."""
        before = sum(self.samples("dedup", "manyray_dedup_hits_total"))
        self.wait_until(lambda: sum(self.samples("dedup", "manyray_dedup_hits_total")) > before, "tables give vectors")

    def await_seen(self, count: int) -> None:
        """Wait until so many posts have come out, for as long as they do come."""
        while (seen := self.live.seen) < count:
            self.wait_until(lambda seen=seen: self.live.seen > seen, f"more posts than {seen} come out, of {count}")

    def await_learned(self) -> None:
        """Once all posts have come out, so have all vectors: wait until dedup has taken them into its tables."""
        self.rest(GAUGES_S)
        gauges = ("manyray_consumer_lag", "manyray_queue_length")

        def waiting() -> list[float]:
            return [value for gauge in gauges for value in self.samples("dedup", gauge)]

        self.wait_until(lambda: (left := waiting()) and not sum(left), "dedup has taken everything")

    def raise_failure(self) -> None:
        """Raise what made subscriber or publisher end, or a role be given up; a post that came twice ends it too."""
        for failure in (self.live.failure, self.publisher.failure):
            if failure is not None:
                raise failure
        if self.live.doubled and not self.fault.doubles:
            raise FaultError(f"{self.live.doubled} came twice, the first of them {self.live.first_doubled}")
        self.pipeline.raise_failure()


def run_fault(fault: Fault, seed: int, posts: int, wait_s: float = WAIT_S) -> Verdict:
    """Run a fault with at least so many posts, and judge it.

    What takes longer than `wait_s`, from the strike on, is told as a failure.
    """
    began_s = clock.monotonic_s()
    counts: Counter[str] = Counter()
    silent_s = math.nan
    problems: list[str] = []
    notes: list[str] = []
    try:
        with ExitStack() as held:
            folder = Path(held.enter_context(TemporaryDirectory(prefix="manyray-fault-")))
            logs = _logs_of(fault, seed)
            held.enter_context(logged_to(held.enter_context((logs / "roles.log").open("w"))))
            points = held.enter_context(environment(folder, fault.launch))
            if fault.disk:
                held.enter_context(disk(folder / fault.disk))
            if fault.clock:
                held.enter_context(clocks(points, "brokers"))
            cluster = held.enter_context(Cluster.start(folder / "brokers", fault.brokers, secured=fault.secured))
            held.callback(_keep_logs, cluster, logs)
            settings = load_settings(
                bootstrap_servers=cluster.bootstrap_servers,
                data_dir=folder / "data",
                model="hash",
                replication=fault.brokers,
                kafka=cluster.guard.kafka if cluster.guard else {},
                **fault.settings,
            )
            direct = settings.model_copy(update={"bootstrap_servers": cluster.direct_servers, "kafka": {}})
            create_ray(direct)
            if fault.clock:
                held.enter_context(clocks(points, "roles"))
            load = Load(seed, fault.text_chars)
            silent_s, problems, notes = _strike(fault, load, cluster, settings, seed=seed, posts=posts, wait_s=wait_s)
            notes += _told((logs / "roles.log").read_text(encoding="utf-8", errors="replace"))
            topics = Topics.of(settings, version_of(settings))
            await_ends(direct, topics)
            counts.update(verify(cluster.direct_servers, topics))
            problems += judge(fault, counts, load)
            problems += find_problems(direct, topics, load)
            if fault.replays is not None:
                told, wrong = judge_replay(cluster.direct_servers, topics, *fault.replays)
                notes.append(told)
                problems += wrong
    except Exception as error:  # the verdict is told all the same, and other faults are run
        problems.append(f"not carried through: {type(error).__name__}: {error}")
    return Verdict(
        fault.name,
        fault.row,
        seed,
        counts["posts"],
        counts["rejected"],
        counts["lost"],
        counts["doubled"],
        counts["recomputed"],
        round(silent_s, 1),
        round(clock.monotonic_s() - began_s, 1),
        problems,
        notes,
    )


def _logs_of(fault: Fault, seed: int) -> Path:
    """The folder of what is said in a run; roles that are broken on purpose have their own."""
    folder = LOGS / "-".join(filter(None, (fault.name, fault.launch, str(seed))))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _told(log: str) -> list[str]:
    """Which roles ended, as their supervisor said, and which transactions failed: how often and why."""
    ends = Counter(f"{name} ended ({how})" for name, how in _ENDED.findall(log))
    failures = Counter(f"a transaction of {id_} failed ({how})" for id_, how in _FAILED.findall(log))
    return [what + (f" {count} times" if count > 1 else "") for what, count in (ends | failures).items()]


def _keep_logs(cluster: Cluster, folder: Path) -> None:
    for number, member in cluster.servers.items():
        (folder / f"broker-{number}.log").write_text(member.logs(), encoding="utf-8")


def _strike(
    fault: Fault, load: Load, cluster: Cluster, settings: Settings, *, seed: int, posts: int, wait_s: float
) -> tuple[float, list[str], list[str]]:
    """Run the pipeline through a fault: how long its output was silent, what was not as it should be, and notes."""
    silent_s = math.nan
    problems: list[str] = []
    roles = {**dict.fromkeys(ROLES, 1), **fault.roles}
    with ExitStack() as held:
        pipeline = held.enter_context(Pipeline(settings, roles, module="faults.launch" if fault.launch else "manyray"))
        pipeline.wait_ready(WAIT_S)
        topics = Topics.of(settings, version_of(settings))
        live = Live(cluster.direct_servers, topics.all_posts, topics.embeddings, topics.rejected, settings.partitions)
        held.callback(live.close)
        publisher = Publisher(cluster.direct_servers, topics.all_posts, load, fault.rate)
        run = Run(fault, cluster, settings, pipeline, publisher=publisher, live=live, seed=seed)
        try:
            run.await_seen(int(posts * STRUCK_AT))
            few = fault.rate * BACKLOG_S
            run.wait_until(lambda: publisher.sent - live.seen < few, "what is published comes out soon")
            live.watch()
            run.wait_s = wait_s
            fault.strike(run)
            run.await_flow()
            silent_s = live.note_end()
            least_s, most_s = fault.silent_s
            if not least_s <= silent_s <= most_s:
                problems.append(f"output was silent for {silent_s:.1f} s, not for {least_s:.0f} to {most_s:.0f} s")
            run.await_hits()
            publisher.go_on_at(REST_RATE)
            run.wait_until(lambda: publisher.sent >= posts, "all posts are sent")
            publisher.end()
            run.await_seen(publisher.sent)
            run.await_learned()
        except Exception as error:  # what had come out until then is judged all the same
            problems.append(f"{type(error).__name__}: {error}")
            for end in (cluster.mend, publisher.end):
                with contextlib.suppress(Exception):  # as it is a failure already
                    end()
        if live.reasons != load.reasons:
            problems.append(f"rejected were {dict(live.reasons)}, and bad are {dict(load.reasons)}")
    return silent_s, problems, run.notes


def judge(fault: Fault, counts: Mapping[str, int], load: Load) -> list[str]:
    """What is wrong with the counts of a run, a line each."""
    problems = [f"{counts[what]} {what}" for what in ("lost", "contradicted") if counts[what]]
    if counts["doubled"] and not fault.doubles:
        problems.append(f"{counts['doubled']} doubled")
    if fault.doubles and not counts["doubled"]:
        problems.append("nothing came twice, so nothing was struck")
    if counts["strange"]:
        problems.append(f"{counts['strange']} records do not belong to the post that they name")
    if counts["never_computed"]:
        problems.append(f"{counts['never_computed']} contents came out without ever being computed")
    if (counts["embedded"], counts["rejected"]) != (load.good, load.bad):
        problems.append(f"of {load.good} good and {load.bad} bad posts {dict(counts)} came out")
    return problems


def judge_replay(servers: str, topics: Topics, source: str, job: str) -> tuple[str, list[str]]:
    """What came of a replay of a whole topic, in words, and what is wrong with it, a line each."""
    counts = verify(servers, topics, [source], job)
    problems = [
        f"of the replay {counts[what]} {what}"
        for what in ("lost", "doubled", "contradicted", "strange")
        if counts[what]
    ]
    if not counts["embedded"]:
        problems.append("nothing came of the replay")
    return f"of the replay {counts['embedded']:,} embedded, {counts['rejected']:,} rejected", problems


def verify(servers: str, topics: Topics, posts: Sequence[str] = (), job: str = "") -> dict[str, int]:
    """The counts of `examples/verify.py`, which uses none of our modules, in a process of its own: of live posts, or of
    those that a job has replayed.
    """
    program = [sys.executable, str(ROOT / "examples" / "verify.py"), servers, topics.embeddings, "--job", job]
    done = subprocess.run(
        [*program, "--posts", *(posts or topics.all_posts), "--rejected", topics.rejected],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=600,
    )
    if not done.stdout:
        raise FaultError(f"examples/verify.py: {done.stderr}")
    return json.loads(done.stdout)
