"""Faust on our transport: committed records only, from the positions it is given."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import faust
import pytest
from confluent_kafka import Consumer, TopicPartition
from faust.types import TP

from streams import clients, clock
from streams.settings import Settings
from streams.transport import CheckpointConsumer, CheckpointTransport
from tests.waiting import WAIT_S

pytestmark = pytest.mark.broker


class App(faust.App):
    """An app on our transport that begins where it is told."""

    begin: Mapping[TP, int]
    held_back: frozenset[int] = frozenset()

    def _new_transport(self) -> Any:
        return CheckpointTransport(self.conf.broker_consumer, self)

    def positions(self) -> Mapping[TP, int]:
        """See `CheckpointConsumer.perform_seek`."""
        return self.begin

    def ready(self, partitions: set[TP]) -> set[TP]:
        """See `CheckpointConsumer._getmany`."""
        return {tp for tp in partitions if tp.partition not in self.held_back}


def write(settings: Settings, topic: str, batches: list[tuple[list[bytes], bool]], partition: int = 0) -> None:
    """A transaction for each batch, ended as told: committed or aborted."""
    producer = clients.producer(settings, f"test{clock.random_id()}")
    producer.init_transactions(30)
    for values, is_committed in batches:
        producer.begin_transaction()
        for value in values:
            producer.produce(topic, value, partition=partition)
        assert producer.flush(30) == 0  # an aborted batch has to reach the broker to prove anything
        producer.commit_transaction() if is_committed else producer.abort_transaction()


@asynccontextmanager
async def running(
    settings: Settings, topic: str, app_id: str, begin: int, *, held_back: frozenset[int] = frozenset()
) -> AsyncIterator[tuple[App, asyncio.Queue]]:
    """An app whose agent puts what it gets, as (offset, value), into a queue."""
    app = App(
        app_id,
        broker=[f"kafka://{settings.bootstrap_servers}"],
        datadir=str(settings.data_dir),
        store="memory://",
        autodiscover=False,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
        consumer_auto_offset_reset="earliest",
    )
    app.held_back = held_back
    app.begin = {TP(topic, 0): begin, TP("another", 7): 99}  # positions of what is not assigned do no harm
    found: asyncio.Queue = asyncio.Queue()

    @app.agent(app.topic(topic, key_serializer="raw", value_serializer="raw"))
    async def agent(stream: Any) -> None:
        async for event in stream.noack().events():
            found.put_nowait((event.message.offset, event.message.value))
            event.ack()

    starting = asyncio.ensure_future(app.start())
    try:
        yield app, found
    finally:
        await app.stop()
        starting.cancel()


async def take(found: asyncio.Queue, last: bytes) -> list[tuple[int, bytes]]:
    """What came, up to and with the record `last`."""
    taken = []
    while not taken or taken[-1][1] != last:
        taken.append(await asyncio.wait_for(found.get(), WAIT_S))
    return taken


def read(settings: Settings, topic: str, begin: int, last: bytes, app_id: str | None = None) -> list[tuple[int, bytes]]:
    """What an agent gets from a position on, up to `last`."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)

    async def run() -> list[tuple[int, bytes]]:
        async with running(settings, topic, app_id or f"app{clock.random_id()}", begin) as (_, found):
            return await take(found, last)

    return asyncio.run(run())


def test_aborted_records_never_arrive(settings, topic):
    """Of five committed and five aborted records, in turns, an agent gets the five, in order."""
    committed, aborted = [b"c%d" % number for number in range(5)], [b"a%d" % number for number in range(5)]
    write(settings, topic, [([bad], False) for bad in aborted[:2]] + [(committed[:3], True)])
    write(settings, topic, [(aborted[2:], False), (committed[3:4], True), ([b"late abort"], False)])
    write(settings, topic, [(committed[4:], True)])
    assert [value for _, value in read(settings, topic, 0, committed[-1])] == committed


def test_an_open_transaction_holds_back_what_follows(settings, topic):
    """Records behind a transaction that is not ended come when it is, and its own, aborted, never do."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    write(settings, topic, [([b"before"], True)])
    blocking = clients.producer(settings, f"test{clock.random_id()}")
    blocking.init_transactions(30)
    blocking.begin_transaction()
    blocking.produce(topic, b"open", partition=0)
    assert blocking.flush(30) == 0
    write(settings, topic, [([b"after"], True)])

    async def run() -> list[bytes]:
        async with running(settings, topic, f"app{clock.random_id()}", 0) as (_, found):
            first = await take(found, b"before")
            assert found.empty()
            await asyncio.to_thread(blocking.abort_transaction)
            return [value for _, value in first + await take(found, b"after")]

    assert asyncio.run(run()) == [b"before", b"after"]


@pytest.mark.parametrize(("committed", "begin"), [(8, 3), (2, 7), (None, 5)])
def test_an_app_begins_where_it_is_told(settings, topic, committed, begin):
    """Not at the group's offset, be it before, behind or unknown."""
    values = [b"v%d" % number for number in range(10)]
    write(settings, topic, [(values, True)])
    app_id = f"app{clock.random_id()}"
    if committed is not None:
        group = {"bootstrap.servers": settings.bootstrap_servers, "group.id": app_id}
        member = Consumer(group)
        member.commit(offsets=[TopicPartition(topic, 0, committed)], asynchronous=False)
        member.close()
    assert read(settings, topic, begin, values[-1], app_id) == list(enumerate(values))[begin:]


def test_a_restarted_app_begins_where_it_is_told(settings, topic):
    """Also after it has acked further itself: an ack is for tools, a position is the truth."""
    values = [b"v%d" % number for number in range(10)]
    write(settings, topic, [(values, True)])
    app_id = f"app{clock.random_id()}"
    assert len(read(settings, topic, 0, values[-1], app_id)) == 10
    assert read(settings, topic, 4, values[-1], app_id) == list(enumerate(values))[4:]


def test_a_partition_that_is_not_ready_holds_up_no_other(settings, topic):
    """Its records stay behind, however many there are, and come, from the first on, when it is ready."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    full, other = [b"f%d" % number for number in range(500)], [b"o%d" % number for number in range(500)]
    write(settings, topic, [(full, True)])
    write(settings, topic, [(other, True)], partition=1)

    async def run() -> list[bytes]:
        async with running(settings, topic, f"app{clock.random_id()}", 0, held_back=frozenset({0})) as (app, found):
            first = await take(found, other[-1])
            app.held_back = frozenset()
            return [value for _, value in first + await take(found, full[-1])]

    assert asyncio.run(run()) == other + full


def test_the_fetch_state_tells_position_and_ends(settings, topic):
    """For the lag: the next offset to fetch, the end of what may be read, the end; None for what is not assigned."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    write(settings, topic, [([b"v%d" % number for number in range(10)], True)])

    async def run() -> tuple:
        async with running(settings, topic, f"app{clock.random_id()}", 3) as (app, found):
            await take(found, b"v9")
            consumer = app.consumer
            assert isinstance(consumer, CheckpointConsumer)
            return consumer.fetch_state(TP(topic, 0)), consumer.fetch_state(TP(topic, 2))

    state, other = asyncio.run(run())
    assert other is None
    assert state is not None
    assert 10 <= state[0] <= state[1] == state[2] == 11  # ten records and the marker of the commit
