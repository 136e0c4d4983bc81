# Faust has no public way to these; each is held by a test on a real broker.
# pyright: reportPrivateUsage=false
"""Faust's Kafka transport, made to read committed records only and to begin where our checkpoints say.

Stock Faust delivers records of aborted transactions unless its own `exactly_once` is on, and begins at the group's
offset, which its acks can carry past records in flight (faust-streaming #606, #707).
"""

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from faust.transport.drivers import aiokafka
from faust.types import TP

FETCH_MAX_WAIT_MS = 100
"""How long a broker holds an answer back where it has nothing: meanwhile nothing else is fetched from it."""
READY_POLL_S = 0.01
FETCH_WAIT_S = 0.05
"""Where partitions are held back: one may become ready meanwhile, and is not asked for before."""


class _ReadCommittedThread(aiokafka.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Read when its fetcher is made, at `start`; Faust has no settings for them.
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS
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

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        """Called by Faust again and again: takes records only from partitions that are ready for more.

        aiokafka hands out all it has of one partition before the next, and Faust waits at the first full queue: left to
        themselves, partitions are worked off one after another.
        """
        active = active_partitions or set()
        ready = cast(Any, self.app).ready(active)
        if not ready:  # to aiokafka none would mean all
            await asyncio.sleep(READY_POLL_S)
            return {}
        return await super()._getmany(ready, timeout if ready == active else FETCH_WAIT_S)

    def on_buffer_full(self, tp: TP) -> None:
        """Do nothing, where Faust stops fetching until a queue is half empty, and then waits up to a second."""

    def on_buffer_drop(self, tp: TP) -> None:
        """See `on_buffer_full`."""

    def refusal(self) -> BaseException | None:
        """Why it can be in its group no longer: aiokafka keeps it for callers of its `getmany`; Faust is none."""
        coordinator: Any = getattr(self._thread._consumer, "_coordinator", None)
        if coordinator is None:
            return None
        task = coordinator._coordination_task
        return coordinator._pending_exception or (task.exception() if task.done() and not task.cancelled() else None)

    def fetch_state(self, tp: TP) -> tuple[int, int, int] | None:
        """Of a partition the next offset to fetch, the last stable offset and the end; None before the first fetch."""
        assignment = self._thread._ensure_consumer()._subscription.subscription.assignment
        state = assignment.state_value(aiokafka.ensure_aiokafka_TP(tp)) if assignment else None
        if state is None or not state.has_valid_position:
            return None
        stable, end = cast(tuple[int | None, int | None], (state.lso, state.highwater))
        return None if stable is None or end is None else (state.position, stable, end)


class CheckpointTransport(aiokafka.Transport):
    """The transport that makes such consumers."""

    Consumer: ClassVar[Any] = CheckpointConsumer
