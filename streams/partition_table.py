"""Opening the table of a partition, which another process of this machine may still hold."""

import logging
import shutil
import threading
from collections.abc import Callable

from rocksdict import Cache

from schemas.errors import Fatal, Retry
from streams import clock
from streams.rocks_table import RocksTable
from streams.settings import Settings
from streams.table import Table
from streams.table_folder import folder_of, spare_of
from streams.tiered_table import TieredTable
from streams.topics import Topics

_log = logging.getLogger("manyray.lane")

HELD_WAIT_S = 2.0
"""How long another process on this machine may take to let go of a table."""
_HELD_PAUSE_S = 1.0


def open_table(
    settings: Settings,
    topics: Topics,
    partition: int,
    index_cache: Cache,
    *,
    on_corrupt: Callable[[], object],
    stop: threading.Event,
) -> Table:
    """The table of a partition, once a process that is on its way out has let go of it.

    One that does not, such as a process that is stopped, keeps its folder: a spare one beside it is taken.

    Raises:
        Retry: another process holds it, and `stop` was set.
        Fatal: it cannot be opened, or the spare one is held too.
    """
    folder = folder_of(settings, topics, partition)
    # Shares of one process's bounds by the partitions that one process may own: all of them.
    disk_bytes = settings.table_disk_mib * 2**20 // settings.partitions
    ram_bytes = settings.table_ram_mib * 2**20 // settings.partitions
    deadline_s = clock.monotonic_s() + HELD_WAIT_S
    chosen, spare = folder, spare_of(folder)
    while True:
        try:
            disk = RocksTable(chosen, disk_bytes, index_cache, on_corrupt)
        except Retry as error:
            if stop.wait(_HELD_PAUSE_S):
                raise
            if clock.monotonic_s() < deadline_s:
                continue
            if chosen is spare:
                raise Fatal(str(error)) from None
            _log.warning("partition %d: %s; goes on with one of its own", partition, error)
            chosen = spare
        else:
            if chosen is folder:
                shutil.rmtree(spare, ignore_errors=True)
            return TieredTable(disk, ram_bytes)
