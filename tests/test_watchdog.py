"""A role that makes no progress ends and says so; one that has nothing to do, or waits for brokers, does not."""

import asyncio
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Producer

from manyray.client import Client
from schemas.chunk import Place
from schemas.errors import Retry
from streams import clients, clock
from streams.control import create_ray
from streams.dedup_app import Lanes
from streams.endpoint import is_live, serve
from streams.health import JOINING, Health
from streams.ingest import LONG_S, Ingest
from streams.lane import Shared
from streams.metrics import Metrics
from streams.packing import Packer
from streams.ports import choose_ports
from streams.rocks_table import index_cache
from streams.settings import Settings
from streams.topics import Topics
from streams.up import Pipeline
from streams.version import version_of
from streams.watchdog import Waiting, watch
from tests.oracle import topics_of
from tests.test_cli import flags
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker

ROOT = Path(__file__).resolve().parents[1]
STALL_S = 4.0
"""Enough for the brokers to answer within a look, on a busy machine too."""


@pytest.fixture
def waiting(settings: Settings) -> Iterator[Waiting]:
    """Of the test's brokers."""
    with closing(clients.reader(settings)) as reader:
        yield Waiting(reader)


@pytest.fixture
def producer(settings: Settings) -> Producer:
    """A transactional one."""
    producer = clients.producer(settings, f"test{clock.random_id()}")
    producer.init_transactions(WAIT_S)
    return producer


def put(producer: Producer, topic: str, count: int) -> None:
    """Records of a transaction that is left open."""
    producer.begin_transaction()
    for _ in range(count):
        producer.produce(topic, b"", partition=0)
    assert producer.flush(WAIT_S) == 0


def asked(waiting: Waiting, place: Place, processed: int) -> int:
    """What waits at a place that has not moved."""
    waiting.ask({place: processed})
    return waiting.ask({place: processed})[place]


def test_only_records_wait(waiting: Waiting, producer: Producer, topic: str) -> None:
    """Neither the mark at a transaction's end, nor what was aborted, nor what is not committed yet."""
    place = (topic, 0)
    assert asked(waiting, place, 0) == 0
    put(producer, topic, 3)
    assert asked(waiting, place, 0) == 0
    producer.commit_transaction(WAIT_S)
    # Its mark follows when the commit is sure.
    wait_until(lambda: asked(waiting, place, 2) > 0, "the records are there")
    assert asked(waiting, place, -1001) >= 3, "a new group, which has committed nothing"
    assert asked(waiting, place, 3) == 0, "only the mark"
    put(producer, topic, 2)
    producer.abort_transaction(WAIT_S)
    assert asked(waiting, place, 3) == 0, "aborted"
    assert asked(waiting, place, 3) == 0, "as known"
    put(producer, topic, 1)
    producer.commit_transaction(WAIT_S)
    wait_until(lambda: asked(waiting, place, 3) > 0, "a record behind all that")


def test_what_moves_is_not_asked_about(waiting: Waiting, producer: Producer, topic: str) -> None:
    """A place that was elsewhere at the last look counts as one where nothing waits."""
    put(producer, topic, 5)
    producer.commit_transaction(WAIT_S)
    wait_until(lambda: asked(waiting, (topic, 0), 4) > 0, "the records are there")
    assert [waiting.ask({(topic, 0): processed})[topic, 0] > 0 for processed in (0, 1, 1, 2)] == [
        False,
        False,
        True,
        False,
    ]


def test_a_place_that_cannot_be_read_hides_no_other(waiting: Waiting, producer: Producer, topic: str) -> None:
    """Of one that is not there nothing is known; of the others all is."""
    put(producer, topic, 5)
    producer.commit_transaction(WAIT_S)
    places: dict[Place, int] = {(topic, 9): 1, (topic, 0): 1}
    waiting.ask(places)
    wait_until(lambda: waiting.ask(places).get((topic, 0)), "the records are there")
    assert (topic, 9) not in waiting.ask(places)


def test_places_that_take_long_to_be_read_hide_no_other(
    waiting: Waiting, producer: Producer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round of one answer: those that cannot be read are asked last from then on."""
    monkeypatch.setattr("streams.watchdog.ROUND_S_MAX", 0.0)
    put(producer, topic, 5)
    producer.commit_transaction(WAIT_S)
    places: dict[Place, int] = {**{(topic, number): 1 for number in range(6, 10)}, (topic, 0): 1}
    waiting.ask(places)
    wait_until(lambda: waiting.ask(places).get((topic, 0)), "the one with records is asked")
    for _ in range(2 * len(places)):
        assert waiting.ask(places).get((topic, 0))


def test_without_brokers_nothing_is_known(settings: Settings) -> None:
    """So a role that waits for them is not ended for it."""
    (port,) = choose_ports([0])
    nowhere = settings.model_copy(update={"bootstrap_servers": f"127.0.0.1:{port}"})
    with closing(clients.reader(nowhere)) as reader:
        waiting = Waiting(reader)
        waiting.ask({("posts", 0): 0})
        with pytest.raises(Retry):
            waiting.ask({("posts", 0): 0})


def test_a_stall_is_told_before_the_end(settings: Settings, producer: Producer, topic: str) -> None:
    """`/live` turns 503 with the reason; with progress it is 200 again, and the process is let be."""
    put(producer, topic, 5)
    producer.commit_transaction(WAIT_S)
    settings = settings.model_copy(update={"stall_timeout_s": STALL_S, "metrics_port": choose_ports([0])[0]})
    processed: dict[Place, int] = {(topic, 0): 1}
    health, said = Health(threading.Event()), list[str]()
    port = serve(Metrics.create().registry, health, settings, "ingest")
    url = f"http://127.0.0.1:{port}/metrics"
    watchdog = watch(settings, health, processed.copy, end=said.append)
    try:
        wait_until(lambda: said, "the stall is seen")
        assert not is_live(url, WAIT_S)
        processed[topic, 0] = 5
        wait_until(lambda: is_live(url, WAIT_S), "progress is seen")
    finally:
        health.stop.set()
        watchdog.join(WAIT_S)
    assert re.fullmatch(rf"no progress in {topic}/0 for \d s with \d+ records waiting", said[0])


def test_who_cannot_be_watched_is_ended(settings: Settings) -> None:
    """A watchdog that died unseen would leave its process live for ever."""
    settings = settings.model_copy(update={"stall_timeout_s": STALL_S})
    said = list[str]()
    watchdog = watch(settings, Health(threading.Event()), lambda: {}["it has a fault"], end=said.append)
    watchdog.join(WAIT_S)
    assert said == ["its watchdog failed (KeyError: 'it has a fault')"]


def test_who_never_joins_its_group_is_ended(settings: Settings) -> None:
    """It owns nothing that could stall: as a client that died of a right it lacked while it joined."""
    settings = settings.model_copy(update={"stall_timeout_s": STALL_S})
    health, said = Health(threading.Event(), lambda: JOINING), list[str]()
    watchdog = watch(settings, health, dict, end=said.append, join_timeout_s=STALL_S)
    try:
        wait_until(lambda: said, "it is seen")
        assert said[0] == f"it has not joined its group in {STALL_S:.0f} s"
        health.waits_for = lambda: ""
        wait_until(lambda: not health.why_not_live(), "it is let be once it has joined")
    finally:
        health.stop.set()
        watchdog.join(WAIT_S)


def test_dedup_whose_partitions_are_taken_joins_again(settings: Settings) -> None:
    """So the bound of joining holds for every rebalance, not for the first one alone."""
    shared = Shared(settings, Topics.of(settings, version_of(settings)), Metrics.create(), index_cache(), print)
    lanes = Lanes(shared)
    lanes.waits_for = ""
    asyncio.run(lanes.close())
    assert lanes.waits_for == JOINING


def test_ingest_beats_only_while_it_packs_for_long(settings: Settings) -> None:
    """A batch of texts that take NFC long is progress; posts of one partition are none in another that stands still."""
    packer, nobody = Packer(bytes, 1, 10, contents=7), cast(Any, None)
    ingest = Ingest(
        settings, Topics.of(settings, version_of(settings)), Metrics.create(), nobody, nobody, {"posts": packer}
    )
    assert ingest.beat() == 0
    ingest._packing_s = clock.monotonic_s()
    assert ingest.beat() == 0
    ingest._packing_s -= LONG_S
    assert ingest.beat() == 7


HANGS = {
    "ingest": ("streams.ingest.Ingest", "publish", "posts"),  # on the main thread
    "dedup": ("streams.lane.Lane", "_look_up", "lookups."),  # on the lane's
    "encode": ("encoders.hashing.HashEncoder", "encode", "misses."),  # on the engine's
}


def hanging(settings: Settings, role: str, stall_s: float, *, at_start: bool = False) -> list[str]:
    """The command of a role that waits in C for ever at its first work, or encode before that, as it warms up."""
    target, method, _ = HANGS[role]
    module, _, name = target.rpartition(".")
    code = f"""
        import ctypes, sys
        import {module} as module
        import manyray.cli as cli
        import streams.encode_role

        whole = module.{name}.{method}

        def hang(*args):
            if {role!r} == "encode" and not {at_start} and len(args[1].lengths) != 1:  # to warm up, it has more
                return whole(*args)
            libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            while True:  # a mutex that is locked twice waits for ever, and no signal interrupts it
                libc.pthread_mutex_lock(mutex)

        module.{name}.{method} = hang
        cli.ROLE_STOP_S = 3.0
        streams.encode_role.WARM_UP_TIMEOUT_S = 2.0
        sys.argv[1:1] = [{role!r}]
        cli.main()
    """
    return [sys.executable, "-c", textwrap.dedent(code), *flags(settings), f"--set=stall_timeout_s={stall_s}"]


def test_a_role_that_fails_while_it_hangs_ends_all_the_same(settings: Settings) -> None:
    """What it would give back waits for ever: it gets the time of a stop."""
    create_ray(settings)
    with (
        Pipeline(settings, roles={"ingest": 1, "dedup": 1}) as pipeline,
        Client(settings) as client,
        subprocess.Popen(hanging(settings, "encode", 600), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "ready: " in line:
                    break
            pipeline.wait_ready(WAIT_S)
            client.publish(["one text"])
            producer = clients.producer(settings)
            for partition in range(settings.partitions):
                producer.produce(topics_of(settings).misses, b"no chunk", partition=partition)
            assert producer.flush(WAIT_S) == 0
            assert process.wait(WAIT_S) == 1
        finally:
            process.kill()


def test_an_encoder_that_hangs_as_it_starts_ends_with_one_line(settings: Settings) -> None:
    """It has joined no group yet, and would be live for ever."""
    create_ray(settings)
    command = hanging(settings, "encode", 600, at_start=True)
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("manyray: it has not computed its first batch in 2 s: ended, to be started again\n")


@pytest.mark.parametrize("role", HANGS)
def test_a_role_that_hangs_ends_with_one_line(settings: Settings, role: str) -> None:
    """Whichever of its threads waits in C for ever: the other roles go on, this one says where it stands and ends."""
    topic = HANGS[role][2]
    create_ray(settings)
    others = {other: 1 for other in HANGS if other != role}
    command = hanging(settings, role, STALL_S)
    said: list[str] = []
    with (
        Pipeline(settings, roles=others) as pipeline,
        Client(settings) as client,
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr is not None
        try:
            for line in process.stderr:
                said.append(line)
                if "ready: " in line:
                    pipeline.wait_ready(WAIT_S)
                    client.publish(["one text"])
            assert process.wait(WAIT_S) == 1, said
        finally:
            process.kill()
    assert re.fullmatch(
        rf"manyray: no progress in {topic}\S+/\d for \d s with 1?\d records? waiting: ended, to be started again\n",
        said[-1],
    )
    assert [line for line in said if "manyray: " in line] == said[-1:]


def test_a_role_without_work_is_let_be(settings: Settings) -> None:
    """Roles whose partitions end with a transaction's mark, or that own none, are ready and live past the time-out."""
    settings = settings.model_copy(update={"stall_timeout_s": STALL_S, "partitions": 1})
    create_ray(settings)
    with Pipeline(settings, roles={"ingest": 2, "dedup": 2, "encode": 2}) as pipeline, Client(settings) as client:
        pipeline.wait_ready(WAIT_S)
        assert client.embed(["one text"]).shape == (1, 384)
        pids, urls = pipeline.pids, pipeline.metrics_urls
        for url in urls.values():
            wait_until(lambda url=url: is_ready(url), f"{url} is ready")
        done_s = clock.monotonic_s() + 2 * STALL_S
        wait_until(lambda: clock.monotonic_s() > done_s, "two time-outs have passed")
        assert pipeline.pids == pids
        assert all(is_live(url, WAIT_S) for url in urls.values())


def is_ready(metrics_url: str) -> bool:
    """Whether a process says that it serves its partitions."""
    from streams.endpoint import DIRECT

    try:
        with DIRECT.open(metrics_url.replace("/metrics", "/ready"), timeout=WAIT_S):
            return True
    except OSError:
        return False
