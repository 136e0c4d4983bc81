"""The dedup role: one Faust app for each version that it serves, each on a thread and an event loop of its own.

Nothing of Faust is bound to the main thread but its `Worker`, which is not used: the role has its own signal handlers.
"""

import asyncio
import threading
from collections.abc import Mapping
from contextlib import suppress

from prometheus_client import CollectorRegistry
from rocksdict import Cache

from schemas.chunk import Place
from schemas.errors import ManyrayError
from streams.dedup_app import DedupApp, build_app, serve_app
from streams.health import JOINING
from streams.lane import Shared
from streams.metrics import ByVersion
from streams.process import allow_open_files, give_memory_back
from streams.rocks_table import index_cache
from streams.role import begin
from streams.serving import Part, serve
from streams.settings import Settings
from streams.table_folder import remove_others


def run(settings: Settings, stop: threading.Event) -> None:
    """Run one dedup process until `stop` is set.

    Raises:
        Fatal: it cannot start, or cannot go on.
    """
    allow_open_files()
    give_memory_back()
    registry, metrics = CollectorRegistry(), ByVersion()
    registry.register(metrics)
    health = begin(settings, "dedup", stop, registry)
    cache = index_cache()
    serve(settings, health, metrics, lambda part: DedupWorker(part, cache))


class DedupWorker:
    """The app of one version."""

    def __init__(self, part: Part, cache: Cache) -> None:
        self._part = part
        self._failure: ManyrayError | None = None
        """Why it ends by itself, as soon as that is known."""
        standing = part.ray().standing(part.topics.version)
        self._shared = Shared(part.settings, part.topics, part.metrics, cache, self._fail, standing)
        self._app: DedupApp | None = None

    def run(self, stop: threading.Event) -> None:
        """As in `Worker`."""
        self._tidy()
        try:
            asyncio.run(self._serve(stop))
        finally:
            self._tidy()

    def waits_for(self) -> str:
        """As in `Worker`."""
        return self._app.lanes.waits_for if self._app else JOINING

    def processed(self) -> Mapping[Place, int]:
        """As in `Worker`."""
        return self._app.lanes.processed() if self._app else {}

    def beat(self) -> int:
        """As in `Worker`."""
        return 0

    def _tidy(self) -> None:
        """Remove the tables of versions that were retired, of this one too if it was."""
        topics = self._shared.topics
        remove_others(self._shared.settings, topics.ray, self._part.ray().names)

    def _fail(self, error: ManyrayError) -> None:
        """The first reason is the one; the app's loop is woken to end it."""
        if self._failure is None:
            self._failure = error
        self._wake()

    def _wake(self) -> None:
        """Do nothing, before there is a loop."""

    async def _serve(self, stop: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[ManyrayError] = loop.create_future()

        def tell() -> None:
            if not failed.done():
                assert self._failure is not None
                failed.set_result(self._failure)

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: it has ended
                loop.call_soon_threadsafe(tell)

        self._wake = wake
        self._app = app = build_app(self._shared.settings, self._shared)
        lanes, metrics = app.lanes, self._shared.metrics
        metrics.queue_length.labels("lane_records").set_function(lanes.most_in_hand)
        metrics.table_entries.set_function(lanes.table_entries)
        metrics.table_bytes.set_function(lanes.table_bytes)
        metrics.partitions_owned.set_function(lambda: lanes.owned)
        await serve_app(app, self._shared, stop, failed)
