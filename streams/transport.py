# Faust has no public way to these; each is held by a test on a real broker.
# pyright: reportPrivateUsage=false
"""Faust's Kafka transport, made to read committed records only and to begin where our checkpoints say.

Stock Faust delivers records of aborted transactions unless its own `exactly_once` is on, and begins at the group's
offset, which its acks can carry past records in flight (faust-streaming #606, #707).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from faust.transport.drivers import aiokafka
from faust.types import TP


class _ReadCommittedThread(aiokafka.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Read when its fetcher is made, at `start`; Faust has no setting for it.
        consumer._isolation_level = "read_committed"
        return consumer


class CheckpointConsumer(aiokafka.Consumer):
    """A consumer that goes to the positions its app knows, not to the group's offsets."""

    def _new_consumer_thread(self) -> Any:
        return _ReadCommittedThread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        """Called by Faust once the partitions of a rebalance are ours, before it fetches from them."""
        positions: Mapping[TP, int] = cast(Any, self.app).positions()
        assigned = self.assignment()
        await self.seek_wait({tp: offset for tp, offset in positions.items() if tp in assigned})

    def fetch_state(self, tp: TP) -> tuple[int, int] | None:
        """The next offset to fetch and the end of a partition; None before the first fetch."""
        assignment = self._thread._ensure_consumer()._subscription.subscription.assignment
        state = assignment.state_value(aiokafka.ensure_aiokafka_TP(tp)) if assignment else None
        if state is None or not state.has_valid_position or state.highwater is None:
            return None
        return state.position, state.highwater


class CheckpointTransport(aiokafka.Transport):
    """The transport that makes such consumers."""

    Consumer: ClassVar[Any] = CheckpointConsumer
