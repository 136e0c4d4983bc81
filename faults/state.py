"""Rows 9 and 10: tables that are gone, damaged, old or held, and disks that are full or cannot be written."""

import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from faults.brokers import WENT_ON, WHOLE_S
from faults.fault import THREE_BROKERS, Fault, add, fault
from faults.run import FaultError, Run
from streams.rocks_table import RocksTable
from streams.table_folder import folder_of, spare_of

HELD_S = 20.0
FULL_S = 15.0
HELD_BYTES = 2**26

Change = Callable[[Path], object]


def _tables(run: Run) -> Path:
    """The folders of the tables, one a partition."""
    return folder_of(run.settings, run.topics, 0).parent


def _offset(folder: Path) -> int:
    """How far a table has read `vectors`, while no process has it."""
    with closing(RocksTable(folder, HELD_BYTES)) as table:
        return table.offset


@contextmanager
def _without_dedup(run: Run) -> Generator[None]:
    """Stop dedup, in order, so that its tables are on disk, for as long as the block runs."""
    run.pipeline.stop_role("dedup")
    yield
    run.pipeline.start_role("dedup")


def _between_two_runs(change: Change, run: Run) -> None:
    with _without_dedup(run):
        change(_tables(run))
    told = "manyray_table_refilled_total" if change is shutil.rmtree else "manyray_table_corrupt_total"
    run.wait_until(lambda: sum(run.samples("dedup", told)), f"{told} says that the change is found")


def _largest(tables: Path, suffix: str) -> Path:
    return max(tables.rglob(f"*{suffix}"), key=lambda path: path.stat().st_size)


def _truncate(suffix: str, tables: Path) -> None:
    path = _largest(tables, suffix)
    os.truncate(path, path.stat().st_size // 2)


def _flip(suffix: str, tables: Path) -> None:
    """Turn a byte over in every kilobyte of a file: in each of its vectors."""
    path = _largest(tables, suffix)
    content = bytearray(path.read_bytes())
    for at in range(512, len(content), 1024):
        content[at] ^= 0xFF
    path.write_bytes(content)


for _name, _change in {
    "deleted": shutil.rmtree,
    "truncated-sst": partial(_truncate, ".sst"),
    "truncated-blob": partial(_truncate, ".blob"),
    "flipped-blob": partial(_flip, ".blob"),
}.items():
    add(Fault(f"table-{_name}", 9, partial(_between_two_runs, _change), settings={"table_disk_mib": 64}))


@fault(9)
def table_of_before(run: Run) -> None:
    """A copy of the tables is put back after they have gone on."""
    with _without_dedup(run):
        copy = shutil.copytree(_tables(run), run.settings.data_dir / "copy")
    run.await_flow()
    with _without_dedup(run):
        if _offset(_tables(run) / "0") <= _offset(copy / "0"):
            raise FaultError("the table has not gone on")
        shutil.rmtree(_tables(run))
        shutil.move(copy, _tables(run))


@fault(9)
def table_held(run: Run) -> None:
    """Another process holds the lock of a table while dedup starts."""
    with _without_dedup(run):
        table = _tables(run) / "0"
        holder = RocksTable(table, HELD_BYTES)
    run.wait_until(spare_of(table).exists, "a spare one is begun")
    run.await_flow()
    run.rest(HELD_S)
    holder.close()


@fault(9)
def vectors_trimmed_in_a_refill(run: Run) -> None:
    """What a refill is about to read is removed from the topic under it."""
    with _without_dedup(run):
        shutil.rmtree(_tables(run))
        run.arm("dedup.refilling", "stop")
    run.wait_until(lambda: not (run.points / "dedup.refilling").exists(), "a refill has begun")
    admin = AdminClient({"bootstrap.servers": run.cluster.direct_servers, "log_level": 0})
    ends = [TopicPartition(run.topics.vectors, partition, -1) for partition in range(run.settings.partitions)]
    for future in admin.delete_records(ends).values():
        future.result(30)
    run.kill("dedup", signal.SIGCONT)


def _fill(disk: Path) -> Path:
    """Leave no byte of a disk free; the file that does it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(65_536))
    return filler


@fault(10, disk="data/tables", settings={"table_disk_mib": 64}, silent_s=(FULL_S, math.inf))
def disk_of_tables_full(run: Run) -> None:
    """Dedup ends, is started again and again, and goes on when there is space."""
    pid = run.pipeline.pids["dedup"]
    filler = _fill(run.settings.data_dir / "tables")
    run.await_end("dedup", pid)
    run.rest(FULL_S)
    filler.unlink()


@fault(10, disk="data/tables", silent_s=(FULL_S, math.inf))
def disk_of_tables_read_only(run: Run) -> None:
    """While dedup is down its disk becomes one that only can be read, as Linux makes one that fails."""
    tables, killed = run.settings.data_dir / "tables", run.pipeline.pids["dedup"]
    run.kill("dedup")
    run.wait_until(lambda: _remount(tables, "ro"), "the disk is read-only")
    started = run.await_end("dedup", killed)
    run.await_end("dedup", started)  # as it cannot write
    run.rest(FULL_S)
    run.wait_until(lambda: _remount(tables, "rw"), "the disk can be written again")


def _remount(folder: Path, how: str) -> bool:
    return subprocess.run(["mount", "-o", f"remount,{how}", folder], check=False, capture_output=True).returncode == 0


@fault(10, disk="brokers", silent_s=(FULL_S, math.inf))
def disk_of_broker_full(run: Run) -> None:
    """The broker ends, as Kafka does; the roles wait for it, and go on when it is there again with space."""
    filler = _fill(run.cluster.folder)
    server = run.cluster.servers[1]
    run.wait_until(lambda: not server.alive, "the broker ends")
    run.rest(FULL_S)
    filler.unlink()
    server.start()


@fault(10, **THREE_BROKERS, disk="brokers/broker-1", silent_s=WENT_ON)
def disk_of_one_broker_full(run: Run) -> None:
    """One of three ends; the others do the work meanwhile."""
    server = run.cluster.servers[1]
    filler = _fill(run.cluster.folder / "broker-1")
    run.wait_until(lambda: not server.alive, "the broker ends")
    run.await_flow()
    run.rest(FULL_S)
    filler.unlink()
    server.start()
    run.cluster.wait_until_whole(WHOLE_S)
