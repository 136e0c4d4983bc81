"""The embedded broker: real Kafka, real processes, and a Maven mirror on the loopback address."""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.errors import Fatal
from streams.broker import Broker, DataDirLock, read_running
from streams.kafka_aot import aot_options
from streams.kafka_jars import damaged, jar_path, kafka_folder, pinned, resolve_jars
from streams.kafka_node import Node, format_storage, server_properties, write_settings
from streams.ports import HOST, choose_ports

TOPIC = "kept"


def create_topic(broker: Broker, copies: int = 1) -> None:
    """Create `TOPIC`, of one partition."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    for future in admin.create_topics([NewTopic(TOPIC, 1, copies)]).values():
        future.result(30)


def produce(broker: Broker, *values: bytes) -> None:
    """Produce `values` in one transaction, acknowledged."""
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "transactional.id": "test"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce(TOPIC, value)
    producer.commit_transaction(30)


def consume(broker: Broker, count: int) -> list[bytes]:
    """The first `count` committed values of `TOPIC`, read by a group."""
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "group.id": "test",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([TOPIC])
    # Long: what was committed just before a kill is to be read when the next start has finished that transaction.
    messages: list[Message] = consumer.consume(count, 90)
    consumer.close()
    return [message.value() for message in messages]


@contextmanager
def end_of(pid: int) -> Iterator[None]:
    """A block in which process `pid` is made to end; left when it has."""
    handle = os.pidfd_open(pid)
    yield
    assert select.select([handle], [], [], 30)[0], f"process {pid} still runs"
    os.close(handle)


def python(code: str, *args: object, **env: str) -> subprocess.Popen[str]:
    """Another Python process that runs `code` and whose output can be read."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
        cwd=Path(__file__).parent.parent,
    )


@pytest.fixture(scope="module")
def jars() -> Path:
    """The folder of Kafka's jars, downloaded if need be."""
    resolve_jars()
    return kafka_folder()


class Mirror(ThreadingHTTPServer):
    """A Maven repository that serves `folder`, counts what is asked, and may send other bytes for some paths."""

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[str] = Counter()
        self.instead: dict[str, bytes] = {}
        super().__init__((HOST, 0), lambda *args: Handler(*args, directory=str(folder)))


class Handler(SimpleHTTPRequestHandler):
    """What `Mirror` answers."""

    server: Mirror

    def do_GET(self) -> None:
        """Count, and send."""
        name = self.path.lstrip("/")
        self.server.asked[name] += 1
        if name not in self.server.instead:
            super().do_GET()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.instead[name])

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def mirror(jars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A mirror of Kafka's jars, which jgo's own settings name in place of Maven Central."""
    with Mirror(jars) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = tmp_path / "home"
        (home / ".config").mkdir(parents=True)
        url = f"http://{HOST}:{server.server_address[1]}"
        (home / ".config" / "jgo.conf").write_text(f"[repositories]\ncentral = {url}\n")
        monkeypatch.setenv("HOME", str(home))
        yield server
        server.shutdown()


# Jars ---------------------------------------------------------------------------------------------------------------


def test_jars_are_downloaded_once_and_then_never_asked_for(mirror: Mirror, tmp_path: Path) -> None:
    """The first call downloads each pinned jar once; a second asks nothing; the class path names them all."""
    said: list[str] = []
    class_path = resolve_jars(tmp_path, said.append)
    asked = {name: count for name, count in mirror.asked.items() if name.endswith(".jar")}
    assert asked == {jar_path(coordinate): 1 for coordinate in pinned()}
    assert all(Path(jar).is_file() for jar in class_path.split(os.pathsep))
    assert len(said) == 1
    mirror.asked.clear()
    assert resolve_jars(tmp_path, said.append) == class_path
    assert not mirror.asked
    assert len(said) == 1


def test_a_damaged_jar_is_noticed_and_replaced(mirror: Mirror, tmp_path: Path, jars: Path) -> None:
    """One wrong byte, or a missing file, is found, and that jar alone is downloaded anew."""
    folder = kafka_folder(tmp_path)
    shutil.copytree(jars, folder, ignore=shutil.ignore_patterns("*.aot"))
    first, second, *_ = pinned()
    changed = bytearray((folder / jar_path(first)).read_bytes())
    changed[len(changed) // 2] ^= 1
    (folder / jar_path(first)).write_bytes(changed)
    (folder / jar_path(second)).unlink()
    assert damaged(folder, pinned()) == [first, second]
    resolve_jars(tmp_path)
    assert damaged(folder, pinned()) == []
    assert {name for name in mirror.asked if name.endswith(".jar")} == {jar_path(first), jar_path(second)}


def test_a_jar_that_is_not_the_pinned_one_is_never_used(mirror: Mirror, tmp_path: Path) -> None:
    """A mirror that sends other bytes, even with a checksum to match, is refused by name."""
    first = next(iter(pinned()))
    mirror.instead[jar_path(first)] = b"not Kafka"
    with pytest.raises(Fatal, match=f"{first} as downloaded is not the jar"):
        resolve_jars(tmp_path)


def test_no_network_is_one_clear_error(mirror: Mirror, tmp_path: Path) -> None:
    """Without the registry the error says what could not be had, and what to do instead."""
    mirror.shutdown()
    mirror.server_close()
    with pytest.raises(Fatal, match=r"cannot download Apache Kafka .*check the network.* set bootstrap_servers"):
        resolve_jars(tmp_path)


def test_two_processes_download_together_without_harm(mirror: Mirror, tmp_path: Path) -> None:
    """Two first starts at once: each jar is downloaded once, and both get the same class path."""
    code = """
        import sys
        from pathlib import Path
        from streams.kafka_jars import resolve_jars
        print(resolve_jars(Path(sys.argv[1])))
    """
    outputs = [process.communicate(timeout=60)[0] for process in [python(code, tmp_path) for _ in range(2)]]
    assert outputs[0] == outputs[1] != ""
    assert {count for name, count in mirror.asked.items() if name.endswith(".jar")} == {1}


# Decisions ----------------------------------------------------------------------------------------------------------


def test_settings_of_one_and_of_three() -> None:
    """One server keeps one copy of all; of three copies two must be in sync; nobody listens beyond the loopback."""
    nodes = [Node(1, 9092, 9001), Node(2, 9093, 9002), Node(3, 9094, 9003)]
    one = server_properties(nodes[0], nodes[:1])
    three = server_properties(nodes[1], nodes)
    assert "transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n" in one
    assert "transaction.state.log.replication.factor=3\ntransaction.state.log.min.isr=2\n" in three
    assert "listeners=BROKER://127.0.0.1:9093,CONTROLLER://127.0.0.1:9002\n" in three
    assert "controller.quorum.voters=1@127.0.0.1:9001,2@127.0.0.1:9002,3@127.0.0.1:9003\n" in three
    assert "0.0.0.0" not in one + three


def test_ports_are_the_wanted_ones_if_free() -> None:
    """A free port is chosen, a busy one gives way to another, and no port is chosen twice."""
    (taken,) = choose_ports([0])
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        busy.bind((HOST, taken))
        busy.listen()
        first, second, third = choose_ports([taken, 0, 0])
        assert len({taken, first, second, third}) == 4
    assert choose_ports([taken, taken])[0] == taken
    assert choose_ports([taken, taken])[1] != taken


def test_an_unsupported_number_of_brokers_is_refused(tmp_path: Path) -> None:
    """Two servers cannot lose one: so there is one, or there are three."""
    with pytest.raises(Fatal, match="brokers=2"):
        Broker.start(tmp_path, brokers=2)


# The data directory -------------------------------------------------------------------------------------------------


def test_a_second_holder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    """The error names the process that holds the directory; once that is killed, its lock file is no obstacle."""
    holder = python(
        """
        import sys
        from pathlib import Path
        from streams.broker import DataDirLock
        with DataDirLock(Path(sys.argv[1])):
            print("held", flush=True)
            sys.stdin.read()
        """,
        tmp_path,
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Fatal, match=rf"in use by process {holder.pid}: stop it, .*--data-dir"), DataDirLock(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with DataDirLock(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


# The broker ---------------------------------------------------------------------------------------------------------


@pytest.mark.broker
def test_data_outlives_a_stop_and_a_kill(tmp_path: Path) -> None:
    """What was acknowledged is there after an orderly stop, and after the server was killed."""
    with Broker.start(tmp_path, port=0) as broker:
        create_topic(broker)
        produce(broker, b"one", b"two")
        assert consume(broker, 2) == [b"one", b"two"]
        assert read_running(tmp_path) == broker.bootstrap_servers
    assert broker.failure
    assert read_running(tmp_path) is None
    with Broker.start(tmp_path, port=0) as broker:
        produce(broker, b"three")
        with end_of(broker.pids[0]):
            os.kill(broker.pids[0], signal.SIGKILL)
        assert read_running(tmp_path) is None
    with Broker.start(tmp_path, port=0) as again:
        broker.stop()  # a second time: and it is no longer that broker's directory
        assert read_running(tmp_path) == again.bootstrap_servers
        assert consume(again, 3) == [b"one", b"two", b"three"]


@pytest.mark.broker
def test_a_busy_port_leads_to_another(tmp_path: Path) -> None:
    """When the port is another program's, Kafka listens elsewhere, and the user is told where."""
    said: list[str] = []
    with socket.socket() as busy:
        busy.bind((HOST, 0))
        busy.listen()
        taken = busy.getsockname()[1]
        with Broker.start(tmp_path, port=taken, log=said.append) as broker:
            port = int(broker.bootstrap_servers.rsplit(":", 1)[1])
            assert port != taken
            assert f"port {taken} is in use: Kafka listens on {port}" in said


@pytest.mark.broker
def test_kafka_ends_when_we_are_killed(tmp_path: Path) -> None:
    """`kill -9` of the process that started Kafka ends Kafka too; nobody finds it any more."""
    parent = python(
        """
        import sys
        from pathlib import Path
        from streams.broker import Broker
        broker = Broker.start(Path(sys.argv[1]), port=0)
        print(broker.pids[0], flush=True)
        sys.stdin.read()
        """,
        tmp_path,
    )
    assert parent.stdout
    kafka = int(parent.stdout.readline())
    assert read_running(tmp_path)
    with end_of(kafka):
        parent.kill()
        parent.communicate()
    assert read_running(tmp_path) is None


@pytest.mark.broker
def test_kafka_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """A thread may start Kafka and end: it is the process whose end ends Kafka. Ctrl-C does not reach it."""
    started: list[Broker] = []
    thread = threading.Thread(target=lambda: started.append(Broker.start(tmp_path, port=0)))
    thread.start()
    thread.join()
    with started[0] as broker:
        create_topic(broker)
        assert broker.failure is None
        assert os.getpgid(broker.pids[0]) != os.getpgid(0)


@pytest.mark.broker
def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A server that ends at once gives one error with its own words and its log's path, and leaves nothing running."""
    Broker.start(tmp_path, port=0).stop()
    (tmp_path / "broker-1" / "data" / "meta.properties").write_text("version=1\nnode.id=7\ncluster.id=other\n")
    log = tmp_path / "broker-1" / "broker.log"
    with pytest.raises(Fatal, match=rf"Kafka broker 1 ended \(exit code 1\): .*node.*7.*\({log}\)"):
        Broker.start(tmp_path, port=0)
    assert read_running(tmp_path) is None


@pytest.mark.broker
def test_a_damaged_cache_of_classes_is_done_without(tmp_path: Path, jars: Path) -> None:
    """Java checks its ahead-of-time cache, and runs without one that is damaged."""
    class_path = resolve_jars()
    use, *more = aot_options(class_path, jars, lambda _: None)
    cache = tmp_path / "damaged.aot"
    shutil.copy(use.removeprefix("-XX:AOTCache="), cache)
    with cache.open("r+b") as file:
        file.seek(cache.stat().st_size // 2)
        file.write(b"damage" * 100)
    node = Node(1, 1, 2)
    write_settings(tmp_path, node, [node])
    format_storage(tmp_path, "A" * 22, class_path, java_options=[f"-XX:AOTCache={cache}", *more])
    assert (tmp_path / "data" / "meta.properties").exists()
    assert "An error has occurred while processing the AOT cache" in (tmp_path / "console.log").read_text()


@pytest.mark.broker
def test_three_brokers_survive_the_loss_of_one(tmp_path: Path) -> None:
    """Three servers form one cluster: with one killed, what was acknowledged is read, and more is accepted."""
    with Broker.start(tmp_path, brokers=3, port=0) as broker:
        assert len(broker.bootstrap_servers.split(",")) == len(set(broker.pids)) == 3
        create_topic(broker, copies=3)
        produce(broker, b"before")
        os.kill(broker.pids[0], signal.SIGKILL)
        produce(broker, b"after")
        assert consume(broker, 2) == [b"before", b"after"]
        assert "Kafka broker 1 ended (exit code -9)" in str(broker.failure)
    with pytest.raises(Fatal, match=r"holds a cluster of 3 brokers, not 1: choose another with --data-dir"):
        Broker.start(tmp_path, port=0)
