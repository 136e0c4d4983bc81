"""Real Kafka servers that can be killed, stopped and cut off from each other and from their clients.

Every server has four listeners:

| listener | for | reached |
|---|---|---|
| CLIENT | who is to feel the faults | through a link of the server |
| DIRECT | oracles, look-ups and who is not to feel them | directly |
| REPLICATION | the other servers | through a link for each of them |
| CONTROLLER | the other servers | through a link for each of them |

Servers name each other `b1`, `b2` and `b3`. Each Java has its own table of hosts, in which server 1's `b2` is
127.0.1.2; there a link listens, on the port that server 2 has. So every ordered pair has links of its own.

A cluster that is `secured` asks for a password at CLIENT, and then for rights.
"""

import json
import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._metadata import ClusterMetadata  # exported nowhere

from faults.guard import GUARDED, Guard
from faults.proxy import Link, Proxies
from schemas.errors import Fatal
from streams.clock import monotonic_s, random_id, sleep_s
from streams.kafka_aot import aot_options
from streams.kafka_jars import kafka_folder, resolve_jars
from streams.kafka_node import Node, Server, format_storage, start_server, why_ended, write_settings
from streams.ports import HOST, choose_ports

START_S_MAX = 90.0
STOP_S_MAX = 60.0
LOOK_S_MAX = 60.0
HEAP_MIB = 256
"""Of each server."""

_ASK_S = 2.0
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class _Place:
    """A server's id and ports; `node.port` is that of its DIRECT listener."""

    node: Node
    client_port: int
    replication_port: int

    @property
    def name(self) -> str:
        """What the servers call it."""
        return f"b{self.node.id}"

    def changes(self, places: "Sequence[_Place]", clients: str, *, secured: bool) -> dict[str, str]:
        """How its properties differ from the embedded broker's; `clients` is the address of its clients' link."""
        protocols = [f"{name}:PLAINTEXT" for name in ("DIRECT", "REPLICATION", "CONTROLLER")]
        protocols.append("CLIENT:SASL_PLAINTEXT" if secured else "CLIENT:PLAINTEXT")
        replication = f"REPLICATION://{self.name}:{self.replication_port}"
        direct = f"DIRECT://{self.node.address}"
        return {
            # To itself it is 127.0.0.1 by its name, which its controller's listener is advertised by, too.
            "listeners": f"CLIENT://{HOST}:{self.client_port},{direct},{replication},"
            f"CONTROLLER://{self.name}:{self.node.controller_port}",
            "advertised.listeners": f"CLIENT://{clients},{direct},{replication}",
            "listener.security.protocol.map": ",".join(protocols),
            "inter.broker.listener.name": "REPLICATION",
            "controller.quorum.voters": ",".join(
                f"{one.node.id}@{one.name}:{one.node.controller_port}" for one in places
            ),
            **(GUARDED if secured else {}),
        }


class Member:
    """A server of a `Cluster`, which keeps its ports and its data through every stop and start."""

    def __init__(self, node: Node, folder: Path, class_path: str, java_options: Sequence[str]) -> None:
        """Use `Cluster.start`."""
        self.node = node
        self._folder = folder
        self._class_path = class_path
        self._java_options = java_options
        self._server: Server | None = None
        self._logs: list[str] = []

    @property
    def alive(self) -> bool:
        """Whether its process is there, be it paused."""
        return self._server is not None and self._server.process.alive()

    @property
    def pid(self) -> int:
        """The id of its process, the last one if it is not alive."""
        assert self._server
        return self._server.process.pid

    def launch(self) -> None:
        """Start its process, and do not wait: for those that cannot be ready before others are."""
        if not self.alive:
            self._keep_logs()
            self._server = start_server(
                self._folder, self.node, self._class_path, heap_mib=HEAP_MIB, java_options=self._java_options
            )

    def start(self) -> None:
        """Start it again, and wait until the cluster counts it in and it serves clients.

        That takes a majority of the servers, and, after `kill`, until the killed one's session has ended (5 s).
        Raises `Fatal` if it ends or is not ready after `START_S_MAX`.
        """
        self.launch()
        deadline_s = monotonic_s() + START_S_MAX
        while self.node.id not in self.sees().brokers:
            if monotonic_s() > deadline_s:
                raise Fatal(f"broker {self.node.id} is not ready after {START_S_MAX:.0f} s: see {self._folder}")
            sleep_s(_PAUSE_S)

    def kill(self) -> None:
        """End it by SIGKILL, also if it is paused; it is gone when this returns."""
        if self._server:
            self._server.process.kill()

    def stop(self) -> None:
        """Let it hand over what it leads and end. Raises `Fatal` if it has not after `STOP_S_MAX`."""
        assert self._server
        self._server.process.send(signal.SIGTERM)
        if not self._server.process.wait(STOP_S_MAX):
            raise Fatal(f"broker {self.node.id} has not stopped after {STOP_S_MAX:.0f} s: see {self._folder}")

    def terminate(self) -> None:
        """Tell it to stop, and do not wait: cut off from the others it may never do so."""
        assert self._server
        self._server.process.send(signal.SIGTERM)

    def gone(self, wait_s: float) -> None:
        """Wait until it has ended, and kill it if it has not after `wait_s`."""
        if self._server and not self._server.process.wait(wait_s):
            self.kill()

    def logs(self) -> str:
        """All that it logged and printed, over all its starts."""
        self._keep_logs()
        return "\n".join(self._logs)

    def _keep_logs(self) -> None:
        for name in ("broker.log", "console.log"):
            path = self._folder / name
            if path.exists():
                self._logs.append(path.read_text(errors="replace"))
                path.unlink()

    def pause(self) -> None:
        """Stop its time (SIGSTOP): its connections stay open, and nobody answers."""
        assert self._server
        self._server.process.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let its time go on (SIGCONT)."""
        assert self._server
        self._server.process.send(signal.SIGCONT)

    def sees(self) -> ClusterMetadata:
        """The cluster as this server knows it; empty if it does not answer. Raises `Fatal` if it has ended."""
        if self._server and not self.alive:
            raise why_ended(self._server)
        # A client that knows this address alone, and has not been told of another yet, asks nobody else.
        admin = AdminClient({"bootstrap.servers": self.node.address, "log_level": 0})
        with suppress(KafkaException):
            return admin.list_topics(timeout=_ASK_S)
        return ClusterMetadata()

    def quorum(self) -> tuple[int, int]:
        """The epoch and the leader of the controllers' quorum (-1: none) as this server last heard of them.

        Kafka keeps them in a file; no client of ours can ask for them.
        """
        with suppress(FileNotFoundError, ValueError):
            state = json.loads((self._folder / "data" / "__cluster_metadata-0" / "quorum-state").read_bytes())
            return state["leaderEpoch"], state["leaderId"]
        return -1, -1


class Cluster:
    """A running Kafka cluster of one or three servers whose faults are ours; a context manager that ends it.

    Servers are known by their ids, which begin at 1.
    """

    def __init__(self) -> None:
        """Use `Cluster.start`."""
        self._open = ExitStack()
        self._clients: dict[int, Link] = {}
        self._between: dict[tuple[int, int], list[Link]] = {}
        self.servers: dict[int, Member] = {}
        self.folder = Path()
        self.guard: Guard | None = None
        """Who keeps the CLIENT listener of a secured cluster."""

    @classmethod
    def start(cls, folder: Path, brokers: int = 3, *, secured: bool = False) -> Self:
        """Start `brokers` (1 or 3) servers with their data in `folder`, and return when they are whole.

        One that is `secured` asks for what its `guard` says.

        Raises `Fatal` if Kafka cannot be had or started, or if this system has no addresses for three.
        """
        if brokers not in (1, 3):
            raise Fatal(f"brokers={brokers}: a cluster for faults has 1 broker, or 3")
        cluster = cls()
        cluster.folder = folder
        try:
            cluster._start(folder.resolve(), brokers, secured)
            if secured:
                cluster.guard = Guard(cluster.direct_servers)
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def _start(self, folder: Path, brokers: int, secured: bool) -> None:
        class_path = resolve_jars()
        java_options = aot_options(class_path, kafka_folder(), lambda _: None)
        places = _choose_places(brokers)
        proxies = self._open.enter_context(Proxies())
        for place in places:
            me = place.node.id
            self._clients[me] = proxies.link(HOST, HOST, place.client_port)
            others = [other for other in places if other is not place]
            hosts = {place.name: HOST} | {other.name: f"127.0.{me}.{other.node.id}" for other in others}
            for other in others:
                ports = (other.replication_port, other.node.controller_port)
                self._between[me, other.node.id] = [_link(proxies, hosts[other.name], port) for port in ports]
            home = folder / f"broker-{me}"
            changes = place.changes(places, self.clients(me).address, secured=secured)
            write_settings(home, place.node, [one.node for one in places], changes)
            (home / "hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts.items()), "ascii")
            # C1 alone: in a run of a minute C2 would take more from two cores than it gives back.
            options = [*java_options, "-Djdk.net.hosts.file=hosts", "-XX:TieredStopAtLevel=1"]
            self.servers[me] = Member(place.node, home, class_path, options)
        cluster_id = random_id()[:21] + "A"  # as Kafka wants it: 22 characters of base 64, the last one's low bits 0
        for member in self.servers.values():
            format_storage(folder / f"broker-{member.node.id}", cluster_id, class_path, java_options=java_options)
            self._open.callback(member.kill)
            member.launch()
        self.wait_until_whole(START_S_MAX)

    def stop(self) -> None:
        """Kill every server, and close every link."""
        self._open.close()

    def __enter__(self) -> Self:
        """The cluster itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    @property
    def bootstrap_servers(self) -> str:
        """Where clients are that feel the faults: `host:port` of every server's link, with commas between."""
        return ",".join(link.address for link in self._clients.values())

    @property
    def direct_servers(self) -> str:
        """Where clients are that feel no fault of a link."""
        return ",".join(member.node.address for member in self.servers.values())

    def mend(self) -> None:
        """Make everything whole that a fault may have broken.

        Raises `Fatal` if it does not get whole.
        """
        for link in (*self._clients.values(), *(link for links in self._between.values() for link in links)):
            link.heal()
        for member in self.servers.values():
            if member.alive:
                member.resume()
            else:
                member.launch()
        self.wait_until_whole(START_S_MAX)

    def clients(self, server: int) -> Link:
        """The link of a server's clients."""
        return self._clients[server]

    def between(self, server: int, other: int) -> list[Link]:
        """The links of the connections that `server` makes to `other`: for replication, and to its controller.

        A partition of the two takes those of `between(other, server)` as well.
        """
        return self._between[server, other]

    def wait_until_whole(self, timeout_s: float) -> None:
        """Return when every server knows of all servers, and of no partition that lacks a copy.

        Raises `Fatal` if a server has ended, or if it takes longer.
        """
        deadline_s = monotonic_s() + timeout_s
        while lacks := [f"to {me} {lack}" for me, it in self.servers.items() if (lack := self._lacks(it.sees()))]:
            if monotonic_s() > deadline_s:
                raise Fatal(
                    f"the cluster is not whole after {timeout_s:.0f} s ({'; '.join(lacks)}): "
                    "start, resume and heal what you stopped"
                )
            sleep_s(_PAUSE_S)

    def _lacks(self, seen: ClusterMetadata) -> str:
        """What a server does not see that a whole cluster has, in words; empty if it is whole."""
        if gone := self.servers.keys() - seen.brokers.keys():
            return f"brokers {sorted(gone)} are gone"
        partitions = [
            f"{name}/{number}"
            for name, topic in seen.topics.items()
            for number, partition in topic.partitions.items()
            if partition.leader not in partition.isrs or set(partition.isrs) != set(partition.replicas)
        ]
        return f"{len(partitions)} partitions lack copies, as {partitions[0]}" if partitions else ""

    def controller(self) -> int:
        """The server that leads the controllers. After its end it is named until another is elected."""
        heard = (member.quorum() for member in self.servers.values())
        return max((epoch, leader) for epoch, leader in heard if leader > 0)[1]

    def leader(self, topic: str, partition: int) -> int:
        """The server that leads a partition, as the controller's server knows it.

        Raises `Fatal` if there is none for `LOOK_S_MAX`, as of a topic that does not exist.
        """
        return self._leaders(topic)[partition]

    def coordinator_of_group(self, group: str) -> int:
        """The server that coordinates a consumer group; `Fatal` as for `leader`, if no group has ever been."""
        return self._coordinator("__consumer_offsets", group)

    def coordinator_of_transaction(self, transactional_id: str) -> int:
        """The server that coordinates a producer's transactions; `Fatal` as for `leader`, if none has ever been."""
        return self._coordinator("__transaction_state", transactional_id)

    def _coordinator(self, topic: str, name: str) -> int:
        leaders = self._leaders(topic)
        return leaders[partition_of(name, len(leaders))]

    def _leaders(self, topic: str) -> dict[int, int]:
        deadline_s = monotonic_s() + LOOK_S_MAX
        while monotonic_s() < deadline_s:
            # Of servers that are cut off from each other it is the controller's own that is up to date.
            teller = self.servers[self.controller()]
            found = teller.sees().topics.get(topic) if teller.alive else None
            if found and found.partitions and all(one.leader > 0 for one in found.partitions.values()):
                return {number: one.leader for number, one in found.partitions.items()}
            sleep_s(_PAUSE_S)
        raise Fatal(f"topic {topic} has a partition without a leader for {LOOK_S_MAX:.0f} s, or does not exist")


def partition_of(name: str, partitions: int) -> int:
    """The partition of an internal topic that holds what is called `name`: Java's hash, as Kafka's coordinators use it.

    >>> partition_of("a", 8), partition_of("my-group", 50), partition_of("polygenelubricants", 8)
    (1, 12, 0)
    """
    units = name.encode("utf-16-be")
    value = 0
    for at in range(0, len(units), 2):
        value = (31 * value + int.from_bytes(units[at : at + 2], "big")) & 0xFFFFFFFF
    signed = value - (1 << 32) if value >> 31 else value
    return 0 if signed == -(1 << 31) else abs(signed) % partitions  # Kafka's Utils.abs of the least int is 0


def _choose_places(brokers: int) -> list[_Place]:
    ports = iter(choose_ports([0] * (4 * brokers)))
    return [
        _Place(Node(number, next(ports), next(ports)), next(ports), next(ports)) for number in range(1, brokers + 1)
    ]


def _link(proxies: Proxies, host: str, port: int) -> Link:
    try:
        return proxies.link(host, HOST, port, port)
    except OSError as error:
        raise Fatal(
            f"cannot listen at {host}:{port} ({error.strerror}): three brokers take addresses 127.0.x.y, which Linux "
            "has by itself and macOS only by `ifconfig lo0 alias`: use Linux, or brokers=1"
        ) from None
