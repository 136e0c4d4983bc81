"""Apache Kafka as an embedded broker: real Kafka, started and stopped with this process.

A data directory holds `broker-<n>/` for each server, `cluster.json` (which cluster this is, from its first start on),
`lock` (who uses it) and, while the cluster is ready, `broker.json` (where it is).
"""

import fcntl
import json
import os
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from schemas.errors import Fatal
from streams.clock import monotonic_s, random_id
from streams.kafka_aot import aot_options
from streams.kafka_jars import kafka_folder, resolve_jars
from streams.kafka_node import (
    Server,
    choose_nodes,
    format_storage,
    start_server,
    wait_until_ready,
    why_ended,
    write_settings,
)


class Broker:
    """A running Kafka cluster of one or three servers on the loopback address; a context manager that stops it.

    What it holds is kept in its data directory. On Linux it also ends when this process ends, even by `kill -9`.
    """

    def __init__(self, data_dir: Path) -> None:
        """Use `Broker.start`."""
        self._data_dir = data_dir
        self._servers: list[Server] = []
        self._stopped = False

    @classmethod
    def start(
        cls,
        data_dir: Path,
        brokers: int = 1,
        port: int = 9092,
        log: Callable[[str], None] = lambda _: None,
        *,
        heap_mib: int = 256,
        cache_dir: Path | None = None,
    ) -> Self:
        """Start `brokers` (1 or 3) servers on the data in `data_dir`, and return when clients can use them.

        The first listens on `port` if that is free, else on any free port, which `log` is told; 0 means any. The
        others listen on any. `heap_mib` is each server's; `cache_dir` is for `resolve_jars`, which downloads Kafka
        the first time, and for `aot_options`. The caller holds a `DataDirLock` on `data_dir`.

        Raises `Fatal` if Kafka cannot be downloaded, if `data_dir` holds a cluster of another size, or if a server
        ends or is not ready within `kafka_node.READY_S_MAX`, with the last lines of its log.
        """
        if brokers not in (1, 3):
            raise Fatal(f"brokers={brokers}: an embedded cluster has 1 broker, or 3")
        data_dir = data_dir.resolve()
        class_path = resolve_jars(cache_dir, log)
        java_options = aot_options(class_path, kafka_folder(cache_dir), log)
        with writing_to(data_dir):
            cluster_id = _cluster_id(data_dir, brokers)
            nodes = choose_nodes(brokers, port)
            if port not in (0, nodes[0].port):
                log(f"port {port} is in use: Kafka listens on {nodes[0].port}")
            broker = cls(data_dir)
            try:
                for node in nodes:
                    folder = data_dir / f"broker-{node.id}"
                    write_settings(folder, node, nodes)
                    format_storage(folder, cluster_id, class_path, java_options=java_options)
                    server = start_server(folder, node, class_path, heap_mib=heap_mib, java_options=java_options)
                    broker._servers.append(server)
                wait_until_ready(broker._servers, log)
            except BaseException:
                broker.stop(timeout_s=0)
                raise
            running = {"bootstrap_servers": broker.bootstrap_servers, "pid": broker.pids[0]}
            _write_json(data_dir / "broker.json", running)
        return broker

    @property
    def bootstrap_servers(self) -> str:
        """`host:port` of every server, with commas between."""
        return ",".join(server.node.address for server in self._servers)

    @property
    def pids(self) -> list[int]:
        """The process ids of the servers, in the order of `bootstrap_servers`."""
        return [server.process.pid for server in self._servers]

    @property
    def failure(self) -> Fatal | None:
        """Why a server has ended; None while all run."""
        return next((why_ended(server) for server in self._servers if not server.process.alive()), None)

    def stop(self, timeout_s: float = 20.0) -> None:
        """Tell every server to stop, and kill those that still run after `timeout_s`; a second call does nothing.

        A killed server loses nothing that it acknowledged, and starts more slowly the next time.
        """
        if self._stopped:  # by now the directory may be another's
            return
        self._stopped = True
        (self._data_dir / "broker.json").unlink(missing_ok=True)
        for server in self._servers:
            server.process.send(signal.SIGTERM)
        deadline_s = monotonic_s() + timeout_s
        for server in self._servers:
            if not server.process.wait(max(0.0, deadline_s - monotonic_s())):
                server.process.kill()

    def __enter__(self) -> Self:
        """The broker itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()


class DataDirLock:
    """The right to use a data directory, for one process at a time; a context manager.

    The operating system drops it when its holder ends, in whatever way: a file left behind is no obstacle.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def __enter__(self) -> Self:
        """Take it, making the directory if need be.

        Raises `Fatal` if it cannot be written, or, naming the holder, if another has it.
        """
        with writing_to(self._data_dir):
            self._data_dir.mkdir(parents=True, exist_ok=True)
            self._file = (self._data_dir / "lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip()
            self._file.close()
            raise Fatal(
                f"data directory {self._data_dir} is in use by process {holder or 'unknown'}: "
                f"stop it, or choose another with --data-dir"
            ) from None
        with writing_to(self._data_dir):
            self._file.truncate(0)
            self._file.write(str(os.getpid()))
            self._file.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back. The file stays: removing it would let two hold a lock of this name."""
        self._file.close()


@contextmanager
def writing_to(data_dir: Path) -> Generator[None]:
    """A block that writes there, whose failure names the remedy."""
    try:
        yield
    except OSError as error:
        raise Fatal(
            f"data directory {data_dir} cannot be written ({error.strerror}): free space, or choose another "
            "with --data-dir"
        ) from None


def read_running(data_dir: Path) -> str | None:
    """The bootstrap servers of the cluster that runs on `data_dir`, or None.

    A `broker.json` left by a machine that lost power is not believed: its process must be there, and its port open,
    because process ids are used again.
    """
    running = _read_json(data_dir / "broker.json")
    if not running:
        return None
    servers = str(running["bootstrap_servers"])
    host, port = servers.split(",", maxsplit=1)[0].rsplit(":", 1)
    try:
        with suppress(PermissionError):  # it is there, and another user's
            os.kill(int(running["pid"]), 0)
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return None
    return servers


def _cluster_id(data_dir: Path, brokers: int) -> str:
    """The id of the cluster on `data_dir`, which is made up and written down at its first start."""
    path = data_dir / "cluster.json"
    if known := _read_json(path):
        if known["brokers"] != brokers:
            raise Fatal(
                f"data directory {data_dir} holds a cluster of {known['brokers']} brokers, not {brokers}: "
                "choose another with --data-dir"
            )
        return str(known["cluster_id"])
    data_dir.mkdir(parents=True, exist_ok=True)
    cluster_id = random_id()[:21] + "A"  # Kafka wants 16 bytes in base 64: 22 characters, the last one's low bits 0
    _write_json(path, {"cluster_id": cluster_id, "brokers": brokers})
    return cluster_id


def _read_json(path: Path) -> dict[str, Any] | None:
    """What `_write_json` wrote; None where it did not, as on a full disk."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Write all of it or nothing: a reader, or a crash, never sees half a file."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(value), "utf-8")
    fresh.replace(path)
