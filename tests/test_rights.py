"""Brokers that ask for rights: a role that lacks one ends at once, and says which."""

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.cluster import Cluster
from faults.guard import KINDS, Guard
from manyray.client import Client
from manyray.job_orders import change_job
from schemas.errors import Fatal, Reject
from streams import clock, failpoints
from streams.control import create_ray
from streams.metrics import read_metrics
from streams.settings import Settings, load_settings
from streams.topics import Topics
from streams.up import ROLES, Pipeline
from streams.version import version_of
from tests.oracle import await_embeddings, post, send
from tests.replaying import begin, run
from tests.test_cli import flags, manyray
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One broker that asks for a password, and then for rights."""
    with Cluster.start(tmp_path_factory.mktemp("guarded"), brokers=1, secured=True) as cluster:
        yield cluster


@pytest.fixture
def guard(guarded: Cluster) -> Guard:
    """Of that broker."""
    assert guarded.guard
    return guarded.guard


@pytest.fixture
def settings(guarded: Cluster, guard: Guard, tmp_path: Path) -> Settings:
    """Of the user whose rights are guarded; the topics are there."""
    name = clock.random_id()
    settings = load_settings(
        bootstrap_servers=guarded.bootstrap_servers,
        data_dir=tmp_path / "data",
        ray=f"ray{name}",
        posts_topics=(f"posts{name}",),
        model="hash",
        kafka=guard.kafka,
    )
    create_ray(settings)
    return settings


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ["GROUP", "TRANSACTIONAL_ID"])
def test_a_role_without_a_right_ends_and_names_it(
    settings: Settings, guard: Guard, role: str, kind: str, tmp_path: Path
) -> None:
    """It does not wait for a right that may never come: whoever runs it starts it again."""
    given = [f"--set=kafka.{name}={value}" for name, value in settings.kafka.items()]
    guard.revoke(kind)
    try:
        done = manyray(role, *flags(settings), *given, "--set=log_level=error", cwd=tmp_path)
    finally:
        guard.grant(kind)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.match("manyray: (not allowed to|kept out of) .*uthorization.* grant it in the ACLs$", last)


READS = {
    "ingest": ["control", "posts"],
    "dedup": ["control", "lookups", "vectors", "checkpoints"],
    "encode": ["control", "misses", "backfill_misses", "posts"],
}
WRITES = {
    "ingest": ["lookups", "rejected"],
    "dedup": ["misses", "backfill_misses", "checkpoints", "embeddings"],
    "encode": ["vectors", "embeddings", "rejected"],
}

GROUPS: dict[str, Callable[[Topics], list[str]]] = {
    "ingest": lambda topics: [f"manyray.ingest.{topics.ray}"],
    "dedup": lambda topics: [topics.dedup_group],
    "encode": lambda topics: [topics.encode_group, topics.backfill_group],
}


@pytest.fixture
def open_to_all(guarded: Cluster, settings: Settings) -> Settings:
    """The same pipeline, for those whose rights are not in question."""
    unguarded = {"bootstrap_servers": guarded.direct_servers, "kafka": {}, "data_dir": settings.data_dir / "others"}
    return settings.model_copy(update=unguarded)


@contextmanager
def only(guard: Guard, rights: Iterable[tuple[str, str, list[str]]]) -> Iterator[None]:
    """The user may do this, and nothing else: kinds, names and operations."""
    guard.revoke_all()
    try:
        for kind, name, operations in rights:
            guard.allow(kind, name, operations)
        yield
    finally:
        guard.revoke_all()
        for kind in KINDS:
            guard.grant(kind)


def names_of(settings: Settings) -> dict[str, str]:
    """Each topic by its field of `Topics`."""
    topics = Topics.of(settings, version_of(settings))
    others = {name: getattr(topics, name) for names in WRITES.values() for name in names}
    return {"posts": topics.posts[0], "replays": topics.replays, "control": topics.control, **others}


def test_the_rights_of_replays_are_enough(settings: Settings, open_to_all: Settings, guard: Guard) -> None:
    """Who may do what docs/replays.md lists, and nothing else, can replay, see and change jobs."""
    names = names_of(settings)
    rights = [
        *(("TOPIC", name, ["DESCRIBE"]) for name in names.values()),
        *(
            ("TOPIC", names[name], ["READ"])
            for name in ("posts", "control", "replays", "checkpoints", "lookups", "backfill_misses")
        ),
        *(("TOPIC", names[name], ["WRITE"]) for name in ("lookups", "replays", "rejected")),
        ("GROUP", Topics.of(settings, version_of(settings)).backfill_group, ["DESCRIBE"]),
        ("TRANSACTIONAL_ID", f"manyray.replay.{settings.ray}.*", ["DESCRIBE", "WRITE"]),
        ("TRANSACTIONAL_ID", f"manyray.replays.{settings.ray}", ["DESCRIBE", "WRITE"]),
        READER,
    ]
    with Pipeline(open_to_all) as pipeline:
        pipeline.wait_ready(WAIT_S)
        send(open_to_all, [post(f"p{number}", f"text {number}") for number in range(100)])
        await_embeddings(open_to_all, 100)
        with only(guard, rights):
            job = begin(settings, settings.posts_topics[0], "allowed")
            assert change_job(settings, job.name, rate=1_000.0)
            done = run(settings, job)
        assert (done.hits, done.misses, done.ended) == (100, 0, True)
        with (
            pytest.raises(Fatal, match=r"not allowed to .*uthorization.* grant it in the ACLs"),
            only(guard, rights[:-2]),
        ):
            begin(settings, settings.posts_topics[0], "not-allowed")


READER = ("GROUP", "manyray.reader", ["DESCRIBE"])


@pytest.mark.parametrize("role", ROLES)
def test_the_rights_of_the_reference_are_enough(
    settings: Settings, open_to_all: Settings, guard: Guard, role: str
) -> None:
    """A role that may do what docs/reference.md lists, and nothing else, does its work."""
    names = names_of(settings)
    rights = [
        *(("TOPIC", name, ["DESCRIBE"]) for name in names.values()),
        *(("TOPIC", names[name], ["READ"]) for name in READS[role]),
        *(("TOPIC", names[name], ["WRITE"]) for name in WRITES[role]),
        *(("GROUP", group, ["READ"]) for group in GROUPS[role](Topics.of(settings, version_of(settings)))),
        ("TRANSACTIONAL_ID", f"manyray.{role}.{settings.ray}.*", ["DESCRIBE", "WRITE"]),
        READER,
    ]
    others = {other: 1 for other in ROLES if other != role}
    with only(guard, rights), Pipeline(open_to_all, others) as pipeline:
        pipeline.wait_ready(WAIT_S)
        for number in (1, 2):  # the second time there is something to come back to
            with Pipeline(settings, {role: 1}) as tried:
                tried.wait_ready(WAIT_S)
                before = tried.pids
                send(
                    open_to_all,
                    [post(f"a{number}", f"text {number}"), b"bad", post(f"b{number}", f"text {number}")],
                )
                assert len(await_embeddings(open_to_all, 2 * number).ids) == 2 * number
                assert tried.pids == before


def test_the_rights_of_clients_in_the_reference_are_enough(
    settings: Settings, open_to_all: Settings, guard: Guard
) -> None:
    """Who may do what docs/reference.md lists for it, and nothing else, publishes, subscribes or embeds."""
    names = names_of(settings)
    writes, reads, rejected = (
        ("TOPIC", names["posts"], ["WRITE"]),
        ("TOPIC", names["embeddings"], ["READ"]),
        ("TOPIC", names["rejected"], ["READ"]),
    )
    member = ("GROUP", settings.ray, ["READ"])
    with Pipeline(open_to_all, dict.fromkeys(ROLES, 1)) as pipeline:
        pipeline.wait_ready(WAIT_S)
        with only(guard, [writes]), Client(settings) as client:
            assert client.publish([("a", "one text")]) == 1
        control = [("TOPIC", names["control"], ["READ"]), READER]
        version = f"{settings.ray}@{version_of(settings)}"
        with only(guard, [reads, member]), Client(settings) as client:
            assert next(iter(client.subscribe(version, settings.ray, batch_posts=1))).ids == ["a"]
        with only(guard, [reads, member, *control]), Client(settings) as client:
            (first,) = next(client.subscribe(settings.ray, settings.ray, batch_posts=1)).ids
            assert first == "a"
        with only(guard, [writes, reads, rejected, *control]), Client(settings) as client:
            assert client.embed(["one text"]).shape == (1, 384)
            with pytest.raises(Reject):
                client.embed([""])


def test_dedup_that_is_refused_within_a_rebalance_ends(
    settings: Settings, guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fetched then, so nobody asks its consumer, which would wait for that for ever."""
    monkeypatch.setenv(failpoints.VARIABLE, str(tmp_path))
    roles = {"ingest": 1, "dedup": 2}
    with Pipeline(settings, roles) as pipeline, Client(settings) as client:
        pipeline.wait_ready(WAIT_S)
        pids = {name: pid for name, pid in pipeline.pids.items() if name.startswith("dedup")}

        def idle() -> list[str]:
            return [name for name in pids if owned(pipeline.metrics_urls[name]) == 0]

        (tmp_path / "dedup.sent").write_text("hang")
        client.publish(["one text"])
        wait_until(lambda: not (tmp_path / "dedup.sent").exists(), "one of them hangs, and will hold up a rebalance")
        pipeline.start_role("dedup")
        wait_until(idle, "the other one has given up its partitions for it")
        (refused,) = idle()
        (hanging,) = pids.keys() - {refused}
        guard.revoke("GROUP")
        try:
            os.kill(pids[hanging], signal.SIGKILL)
            wait_until(lambda: pipeline.pids[refused] != pids[refused], f"{refused} ends")
        finally:
            guard.grant("GROUP")


def owned(metrics_url: str) -> float:
    """Partitions that a process owns."""
    return next(sample.value for sample in read_metrics(metrics_url) if sample.name == "manyray_partitions_owned")
