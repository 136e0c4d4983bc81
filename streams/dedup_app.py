"""Dedup as a Faust app: its agents take chunks and vectors and hand them to the lane that owns the partition.

One Faust event is one chunk: Faust carries some 6,000 events a second, whatever is in them.
"""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import faust
from faust.types import TP

from schemas.chunk import Place
from schemas.errors import Fatal, ManyrayError, Retry
from streams import clients
from streams.broker import writing_to
from streams.faust_credentials import faust_credentials
from streams.health import JOINING
from streams.lag import OpenTransactions
from streams.lane import Lane, Record, Shared
from streams.metrics import Metrics
from streams.settings import Settings
from streams.topics import Topics
from streams.transport import CheckpointConsumer, CheckpointTransport

_log = logging.getLogger("manyray.dedup")

LANE_RECORDS_MAX = 16
"""Records that a lane has in hand before no more are fetched for it; each is under 2 MiB."""
FETCH_RECORDS_MAX = 8
"""Records fetched at once: few, because all may be of one partition."""
STREAM_RECORDS_MAX = 32
"""Records that wait in Faust before each agent, fetched before their lanes had too many."""
SESSION_TIMEOUT_S = 6.0
"""The least that Kafka's brokers take by default."""
POLL_S_MAX = 10 * 365 * 86_400.0
"""A member that is assigned nothing polls nothing: after this, 1,000 s by Faust's default, it leaves for good."""
_WATCH_EVERY_S = 0.2


class DedupApp(faust.App):
    """The app: Faust's, with lanes that follow the assignment."""

    lanes: "Lanes"
    agents_kept: tuple[Any, ...] = ()

    def __init__(self, id: str, **options: Any) -> None:
        super().__init__(id, **options)
        self.hooks: list[tuple[Any, Any]] = []
        """The signals and what is connected to them. The receivers are kept by `faust.App`, the class, for ever."""

    def forget(self) -> None:
        """Disconnect the hooks: they hold this app, and what all apps share holds them."""
        for signal, hook in self.hooks:
            signal.disconnect(hook)
            signal._filter_receivers.pop(signal._create_id(self), None)
        self.hooks.clear()

    def _new_transport(self) -> Any:
        return CheckpointTransport(self.conf.broker_consumer, self)

    async def _on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self.lanes.assigned = True  # before the recovery that ends in `on_rebalance_complete` can begin
        await super()._on_partitions_assigned(assigned, generation_id)

    def _on_rebalance_when_stopped(self) -> None:
        """Do nothing: the consumer's thread leaves the group when the rebalance that meets the stop is over.

        Faust closes aiokafka's client here, on another loop than its own: what is under way in it then never ends, nor
        does the thread, and its member stays in the group until the session is over.
        """

    def positions(self) -> Mapping[TP, int]:
        """Where each partition is to be read from."""
        return self.lanes.positions()

    def ready(self, partitions: set[TP]) -> set[TP]:
        """Which of them may be read from now."""
        return self.lanes.ready(partitions)


class Lanes:
    """The lanes of the partitions that this process owns now. All methods run on Faust's event loop."""

    def __init__(self, shared: Shared) -> None:
        self.assigned = False
        self.is_ending = False
        """Whether the process ends, and not only a rebalance takes partitions away."""
        self.waits_for = JOINING
        """Why it does not serve its partitions now; empty when it does. Any thread may ask."""
        self.owned = 0
        """Partitions that have a lane, or one that is still stopping. Any thread may ask."""
        self.open_transactions = OpenTransactions(shared.metrics.open_transaction_seconds)
        self._shared = shared
        self._lanes: dict[int, Lane] = {}
        self._in_hand: Counter[int] = Counter()
        self._preparing: list[Lane] = []
        self._changing = asyncio.Lock()
        self._threads = ThreadPoolExecutor(shared.settings.partitions, thread_name_prefix="lanes")

    async def open(self, assigned: set[TP]) -> None:
        """Make lanes for partitions that were assigned; returns when they are fenced, refilled and started.

        Raises:
            Retry: they were taken away again meanwhile.
            Fatal: `lookups` and `vectors` are not assigned alike, or a partition cannot be served.
        """
        topics = self._shared.topics
        lookups = {tp.partition for tp in assigned if tp.topic == topics.lookups}
        vectors = {tp.partition for tp in assigned if tp.topic == topics.vectors}
        if lookups != vectors:
            raise Fatal(
                f"{topics.lookups} {sorted(lookups)} and {topics.vectors} {sorted(vectors)} are not assigned alike: "
                "give both the same number of partitions"
            )
        async with self._changing:
            self.waits_for = "it is restoring its tables"
            new = [Lane(self._shared, partition) for partition in sorted(lookups - self._lanes.keys())]
            self._preparing = new
            try:
                outcomes = await self._prepare(new)
            finally:
                self._preparing = []
            if errors := [outcome for outcome in outcomes if outcome is not None]:
                await self._on_threads([lane.stop for lane in new])
                raise min(errors, key=lambda error: isinstance(error, Retry))
            for lane in new:
                self._lanes[lane.partition] = lane
                lane.start()
            self.waits_for = ""
        self.owned = len(self._lanes)
        _log.info("version %s: owns %d partitions of %s", topics.version, self.owned, topics.lookups)

    async def close(self) -> None:
        """Stop all lanes: what they have in hand is committed, the rest is read again."""
        for lane in self._preparing:  # a refill may take longer than a rebalance may wait
            lane.give_up()
        async with self._changing:
            self.waits_for = JOINING
            gone = tuple(self._lanes.values())
            self._lanes.clear()
            await self._on_threads([partial(lane.stop, is_last=self.is_ending) for lane in gone])
            for lane in gone:
                del self._in_hand[lane.partition]
                for topic in (self._shared.topics.lookups, self._shared.topics.vectors):
                    self._shared.metrics.consumer_lag.remove(topic, str(lane.partition))
                    self.open_transactions.forget(topic, lane.partition)
        self.owned = 0
        if gone:
            topics = self._shared.topics
            _log.info("version %s: gave up %d partitions of %s", topics.version, len(gone), topics.lookups)

    def end(self) -> None:
        """Let its threads go; there will be no more lanes."""
        self._threads.shutdown(wait=False)

    def ready(self, partitions: set[TP]) -> set[TP]:
        """Those whose lane is there and takes more."""
        return {
            tp
            for tp in partitions
            if tp.partition in self._lanes and self._in_hand[tp.partition] + FETCH_RECORDS_MAX <= LANE_RECORDS_MAX
        }

    def put(self, message: Any) -> None:
        """Hand a record to its lane; without one it is dropped, and read again by its owner."""
        lane = self._lanes.get(message.partition)
        if lane is None:
            return
        loop = asyncio.get_running_loop()

        def done() -> None:
            loop.call_soon_threadsafe(self._done, lane)

        self._in_hand[lane.partition] += 1
        is_vectors = message.topic == self._shared.topics.vectors
        lane.put(Record(message.value, message.offset, is_vectors, done))

    def positions(self) -> dict[TP, int]:
        """The next offset to read of each partition of both topics."""
        topics = self._shared.topics
        return {
            TP(topic, number): offset
            for number, lane in self._lanes.copy().items()
            for topic, offset in ((topics.lookups, lane.lookups_offset), (topics.vectors, lane.vectors_offset))
        }

    def processed(self) -> dict[Place, int]:
        """The same, but for partitions whose table is being refilled: that bounds itself. Any thread may ask."""
        restoring = {number for number, lane in self._lanes.copy().items() if lane.is_restoring}
        return {
            (tp.topic, tp.partition): offset for tp, offset in self.positions().items() if tp.partition not in restoring
        }

    def waiting(self, partition: int) -> int:
        """Records that wait in a partition's lane."""
        lane = self._lanes.get(partition)
        return lane.waiting if lane else 0

    def most_in_hand(self) -> int:
        """Records that the lane which has most of them has in hand."""
        return max(self._in_hand.copy().values(), default=0)

    def table_entries(self) -> int:
        """Vectors in the tables of these lanes."""
        return sum(lane.entries for lane in tuple(self._lanes.values()))

    def table_bytes(self) -> int:
        """Bytes of the tables of these lanes."""
        return sum(lane.table_bytes for lane in tuple(self._lanes.values()))

    async def _prepare(self, lanes: Sequence[Lane]) -> list[BaseException | None]:
        """Prepare them all and return what was raised.

        Faust cancels this when it stops. The threads go on all the same: who did not wait for them would leave tables
        open, which nobody in this process can open again, and producers.
        """
        loop = asyncio.get_running_loop()
        waits = [loop.run_in_executor(self._threads, lane.prepare) for lane in lanes]
        if not waits:
            return []
        try:
            await asyncio.wait(waits)
        except asyncio.CancelledError:
            for lane in lanes:
                lane.give_up()
            await asyncio.wait(waits)
            await self._on_threads([lane.stop for lane in lanes])
            raise
        return [wait.exception() for wait in waits]

    def _on_threads(self, calls: Sequence[Callable[[], object]]) -> Any:
        """All of them at once, each of which may take a minute."""
        loop = asyncio.get_running_loop()
        waits = [loop.run_in_executor(self._threads, call) for call in calls]
        return asyncio.gather(*waits)

    def _done(self, lane: Lane) -> None:
        if self._lanes.get(lane.partition) is lane:
            self._in_hand[lane.partition] -= 1


def build_app(settings: Settings, shared: Shared) -> DedupApp:
    """The Faust app of these settings: two agents, and the hooks that open and close lanes."""
    folder = settings.data_dir / "faust"
    with writing_to(settings.data_dir):
        folder.mkdir(parents=True, exist_ok=True)
    app = DedupApp(
        shared.topics.dedup_group,
        broker=[f"kafka://{address}" for address in clients.bootstrap_servers(settings).split(",")],
        datadir=str(folder),
        store="memory://",
        autodiscover=False,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=1,  # 0 would take Faust's assignor away, and with it co-partitioning
        stream_wait_empty=False,
        stream_buffer_maxsize=STREAM_RECORDS_MAX,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=4_194_304,
        broker_max_poll_records=FETCH_RECORDS_MAX,
        broker_client_id=settings.kafka.get("client.id", "manyray"),
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=SESSION_TIMEOUT_S / 5,
        broker_rebalance_timeout=60.0,
        broker_max_poll_interval=POLL_S_MAX,
        broker_request_timeout=40.0,
        **faust_credentials(settings),
    )
    app.lanes = lanes = Lanes(shared)

    def raw(topic: str) -> Any:
        # No acks: checkpoints say where to go on. Faust's would pile up, as each transaction's marker is a gap to it.
        return app.topic(topic, key_serializer="raw", value_serializer="raw", allow_empty=True, acks=False)

    @app.agent(raw(shared.topics.lookups), name="manyray.lookups")
    async def lookups(stream: Any) -> None:
        async for event in stream.noack().events():
            lanes.put(event.message)

    @app.agent(raw(shared.topics.vectors), name="manyray.vectors")
    async def vectors(stream: Any) -> None:
        async for event in stream.noack().events():
            lanes.put(event.message)

    async def opened(*_: Any, **__: Any) -> None:
        if not lanes.assigned:  # revoked again before this hook ran: others may own the partitions by now
            return
        try:
            await lanes.open(app.consumer.assignment())
        except Retry as error:
            _log.debug("given up: %s", error)
        except ManyrayError as error:
            shared.on_fatal(error)
        except Exception as error:  # Faust would log it and go on without the partitions
            shared.on_fatal(Fatal(f"partitions cannot be served: {type(error).__name__}: {error}"))

    async def revoked(*_: Any, **__: Any) -> None:
        lanes.assigned = False
        await lanes.close()

    app.agents_kept = (lookups, vectors)
    for signal, hook in (
        (app.on_rebalance_complete, opened),
        (app.on_partitions_revoked, revoked),
        (app.on_before_shutdown, revoked),
    ):
        signal.connect(hook)
        app.hooks.append((signal, hook))
    return app


async def serve_app(app: DedupApp, shared: Shared, stop: threading.Event, failed: asyncio.Future[ManyrayError]) -> None:
    """Run the app until `stop` is set. `failed` is set as soon as it cannot go on, which is before it has ended.

    Raises:
        Fatal: it cannot start, or cannot go on.
    """
    starting = asyncio.ensure_future(app.start())
    try:
        while not (stop.is_set() or failed.done()):
            await asyncio.wait([failed], timeout=_WATCH_EVERY_S)
            consumer = cast(CheckpointConsumer, app.consumer)
            if refusal := consumer.refusal():
                rights = "if it lacks a right, grant it in the ACLs"
                shared.on_fatal(Fatal(f"kept out of group {app.conf.id} ({refusal!r}): {rights}"))
            elif app.crashed:
                shared.on_fatal(Fatal(f"Faust stopped: {app.crash_reason!r}; it is to be started again"))
            elif starting.done() and (error := starting.exception()):
                shared.on_fatal(Fatal(f"Faust did not start: {type(error).__name__}: {error}"))
            elif starting.done():
                report_lag(app, consumer, shared.topics, shared.metrics)
    finally:
        stop.set()  # after a failure too: what is left has the time of a stop
        app.lanes.is_ending = True
        await app.stop()
        starting.cancel()
        await app.lanes.close()
        app.lanes.end()
        app.forget()
    if failed.done():
        raise failed.result()


def report_lag(app: DedupApp, consumer: CheckpointConsumer, topics: Topics, metrics: Metrics) -> None:
    """Set the lag of each partition: records not fetched, and those that wait in its lane; and what holds it up.

    Of those that have lanes: an assignment that is being taken away is seen by the client for a while yet.
    """
    for tp in app.lanes.positions():
        state = consumer.fetch_state(tp)
        if state is None:
            continue
        read, stable, end = state
        waiting = app.lanes.waiting(tp.partition) if tp.topic == topics.lookups else 0
        metrics.consumer_lag.labels(tp.topic, str(tp.partition)).set(max(0, end - read) + waiting)
        app.lanes.open_transactions.note(tp.topic, tp.partition, read=read, stable=stable, end=end)
