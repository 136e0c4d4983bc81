"""Laws of dedup's app, which runs in this process."""

import asyncio
from typing import Any

import pytest
from faust.types import TP

from schemas.errors import ManyrayError
from streams.control import create_ray
from streams.dedup_app import build_app
from streams.lane import Shared
from streams.metrics import Metrics
from streams.rocks_table import index_cache
from streams.settings import Settings
from streams.topics import Topics
from streams.version import version_of
from tests.test_transport import write
from tests.waiting import WAIT_S

pytestmark = pytest.mark.broker

TRANSACTIONS = 20


def test_nothing_is_kept_of_what_is_done(settings: Settings) -> None:
    """However many transactions there were: each has a marker, which to Faust's acks is a gap that is never closed."""
    settings = settings.model_copy(update={"partitions": 1, "accept_gaps": True})  # records of nothing will do
    create_ray(settings)
    topics = Topics.of(settings, version_of(settings))
    failed: list[ManyrayError] = []

    async def run() -> list[Any]:
        app = build_app(settings, Shared(settings, topics, Metrics.create(), index_cache(), failed.append))
        starting = asyncio.ensure_future(app.start())
        ends = {TP(topic, 0): 2 * TRANSACTIONS - 1 for topic in (topics.lookups, topics.vectors)}
        try:
            async with asyncio.timeout(WAIT_S):
                while app.lanes.waits_for:
                    await asyncio.sleep(0.05)
                for tp in ends:
                    await asyncio.to_thread(write, settings, tp.topic, [([b""], True)] * TRANSACTIONS)
                while app.lanes.positions() != ends:
                    assert not failed
                    await asyncio.sleep(0.05)
            consumer: Any = app.consumer
            await consumer.commit()
            return [len(kept[tp]) for kept in (consumer._acked, consumer._acked_index, consumer._gap) for tp in ends]
        finally:
            await app.stop()
            starting.cancel()
            await app.lanes.close()

    assert not any(asyncio.run(run()))
