"""Laws of the cluster that faults are made with: three real servers, and the links between them."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from faults.cluster import Cluster, partition_of
from faults.frames import Api
from schemas.errors import Fatal
from streams import clients, clock
from streams.metrics import Metrics
from streams.settings import load_settings
from streams.transactions import TransactionalProducer
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker

SERVERS = {1, 2, 3}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for the whole file."""
    with Cluster.start(tmp_path_factory.mktemp("cluster"), brokers=3) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """The cluster, whole again for each test."""
    yield running
    running.mend()


def make_topic(cluster: Cluster, *replicas: int) -> str:
    """A new topic with one partition, whose copies are at these servers, the first one leading."""
    name = f"topic{clock.random_id()}"
    admin = AdminClient({"bootstrap.servers": cluster.direct_servers})
    for future in admin.create_topics([NewTopic(name, 1, replica_assignment=[list(replicas)])]).values():
        future.result(WAIT_S)
    assert cluster.leader(name, 0) == replicas[0]
    return name


def produce(servers: str, topic: str, value: bytes, acks: str = "all") -> None:
    """Produce a record, acknowledged."""
    producer = Producer({"bootstrap.servers": servers, "acks": acks, "log_level": 0})
    producer.produce(topic, value)
    assert producer.flush(WAIT_S) == 0


def reader(cluster: Cluster, topic: str, partition: int = 0) -> Consumer:
    """A consumer of a partition from its beginning that feels no fault of a link, of committed records only."""
    consumer = Consumer(
        {
            "bootstrap.servers": cluster.direct_servers,
            "group.id": "reader",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "log_level": 0,
        }
    )
    consumer.assign([TopicPartition(topic, partition, 0)])
    return consumer


def read(cluster: Cluster, topic: str, count: int) -> list[bytes]:
    """The first `count` committed values."""
    consumer = reader(cluster, topic)
    values = [message.value() for message in consumer.consume(count, WAIT_S)]
    consumer.close()
    return values


def others(server: int) -> list[int]:
    """The other two servers."""
    return sorted(SERVERS - {server})


def test_coordinators_are_those_that_kafka_names(cluster):
    """A group's is what Kafka describes; a transactional id's leads the partition where Kafka keeps that id."""
    topic = make_topic(cluster, 1, 2, 3)
    admin = AdminClient({"bootstrap.servers": cluster.direct_servers})
    groups = [f"group-{number}-ü" for number in range(6)]
    for group in groups:
        consumer = Consumer({"bootstrap.servers": cluster.direct_servers, "group.id": group})
        consumer.commit(offsets=[TopicPartition(topic, 0, 1)], asynchronous=False)
        consumer.close()
    named = {
        group: future.result(WAIT_S).coordinator.id for group, future in admin.describe_consumer_groups(groups).items()
    }
    assert {group: cluster.coordinator_of_group(group) for group in groups} == named

    names = [f"transaction-{number}-ü" for number in range(4)]
    for name in names:
        producer = Producer({"bootstrap.servers": cluster.direct_servers, "transactional.id": name})
        producer.init_transactions(WAIT_S)
    state = "__transaction_state"
    kept: dict[str, int] = {}
    partitions = admin.list_topics(state).topics[state].partitions
    assert {len(partition.replicas) for partition in partitions.values()} == {3}
    consumers = {number: reader(cluster, state, number) for number in partitions}

    def look() -> None:
        for number, consumer in consumers.items():
            for message in consumer.consume(100, 0.05):
                kept[message.key()[4:].decode()] = number  # int16 version, int16 length, the id

    wait_until(lambda: set(names) <= kept.keys(), "the ids are in the log of transactions", look)
    for consumer in consumers.values():
        consumer.close()
    assert [cluster.coordinator_of_transaction(name) for name in names] == [
        cluster.leader(state, kept[name]) for name in names
    ]


def test_partitions_of_internal_topics_are_javas():
    """The hash is that of Java's strings, in UTF-16; the least number has no absolute value, and is 0 to Kafka."""
    names = ["a", "my-group", "\N{GRINNING FACE}", "polygenelubricants"]
    assert [partition_of(name, 1000) for name in names] == [97, 762, 899, 0]


def test_a_killed_controller_is_replaced_and_its_records_are_there_again(cluster):
    """Another server takes over at once; what only the killed one held is read when it has started again."""
    killed = cluster.controller()
    topic = make_topic(cluster, killed)
    produce(cluster.direct_servers, topic, b"kept", acks="1")  # one copy is not the two in sync that "all" takes
    server = cluster.servers[killed]
    before = server.pid
    server.kill()
    assert not server.alive
    with pytest.raises(Fatal, match=rf"Kafka broker {killed} ended \(exit code -9\)"):
        cluster.wait_until_whole(WAIT_S)
    wait_until(lambda: cluster.controller() != killed, "another controller is elected")
    assert cluster.servers[cluster.controller()].alive
    server.start()
    assert server.sees().brokers.keys() == SERVERS
    assert server.pid != before
    assert read(cluster, topic, 1) == [b"kept"]


def test_a_server_that_stops_hands_over_first(cluster):
    """When a clean stop returns, its process is gone and another server leads."""
    topic = make_topic(cluster, 2, 3, 1)
    produce(cluster.bootstrap_servers, topic, b"before")
    cluster.servers[2].stop()
    assert not cluster.servers[2].alive
    assert cluster.leader(topic, 0) != 2
    cluster.servers[2].start()
    assert read(cluster, topic, 1) == [b"before"]


def test_a_partition_between_servers_moves_the_leadership_away(cluster):
    """The rest of the cluster goes on without the server that none of them reaches, until the partition is healed."""
    isolated = others(cluster.controller())[0]
    topic = make_topic(cluster, isolated, *others(isolated))
    produce(cluster.bootstrap_servers, topic, b"before")
    links = [
        link
        for other in others(isolated)
        for link in (*cluster.between(isolated, other), *cluster.between(other, isolated))
    ]
    for link in links:
        link.cut()
    wait_until(lambda: cluster.leader(topic, 0) != isolated, "another server leads")
    assert cluster.servers[isolated].alive
    for link in links:
        link.heal()
    cluster.wait_until_whole(WAIT_S)
    produce(cluster.bootstrap_servers, topic, b"after")
    assert read(cluster, topic, 2) == [b"before", b"after"]


def test_a_paused_server_loses_its_leadership_and_comes_back(cluster):
    """SIGSTOP past its session makes it a stranger; SIGCONT makes it a follower."""
    paused = others(cluster.controller())[0]
    topic = make_topic(cluster, paused, *others(paused))
    cluster.servers[paused].pause()
    wait_until(lambda: cluster.leader(topic, 0) != paused, "another server leads")
    assert cluster.servers[paused].alive
    with pytest.raises(Fatal, match="not whole after 0 s"):
        cluster.wait_until_whole(0)
    cluster.servers[paused].resume()


def test_a_cut_is_felt_by_clients_of_the_links_alone(cluster):
    """Records wait at the link and are delivered once it is healed; the direct listeners serve all the while."""
    topic = make_topic(cluster, 1, 2, 3)
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "enable.idempotence": True, "log_level": 0})
    producer.produce(topic, b"1")
    assert producer.flush(WAIT_S) == 0
    for server in SERVERS:
        cluster.clients(server).cut()
    producer.produce(topic, b"3")
    assert producer.flush(1) == 1
    produce(cluster.direct_servers, topic, b"2")
    for server in SERVERS:
        cluster.clients(server).heal()
    assert producer.flush(WAIT_S) == 0
    assert read(cluster, topic, 3) == [b"1", b"2", b"3"]


def test_a_commit_whose_reply_is_dropped_is_committed(cluster):
    """The broker has done what the producer never hears of."""
    topic = make_topic(cluster, 1, 2, 3)
    name = f"transaction{clock.random_id()}"
    conf = {"bootstrap.servers": cluster.bootstrap_servers, "transactional.id": name, "log_level": 0}
    producer = Producer(conf)
    producer.init_transactions(WAIT_S)
    link = cluster.clients(cluster.coordinator_of_transaction(name))
    link.hold_replies({Api.END_TXN})
    producer.begin_transaction()
    producer.produce(topic, b"committed")
    with ThreadPoolExecutor(1) as pool:
        commit = pool.submit(producer.commit_transaction, WAIT_S)
        wait_until(lambda: link.held == 1, "the reply is held back")
        assert read(cluster, topic, 1) == [b"committed"]
        assert not commit.done()
        link.heal()
        commit.result(WAIT_S)


def test_nothing_is_left_when_the_block_fails(tmp_path: Path):
    """Its processes are gone, a paused one too, and its ports closed."""

    def fail() -> None:
        with Cluster.start(tmp_path, brokers=1) as cluster:
            failed.append(cluster)
            cluster.servers[1].pause()
            raise ZeroDivisionError

    failed: list[Cluster] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    assert not failed[0].servers[1].alive
    with pytest.raises(ProcessLookupError):
        os.kill(failed[0].servers[1].pid, signal.SIG_DFL)
    with pytest.raises(KafkaException):
        AdminClient({"bootstrap.servers": failed[0].bootstrap_servers, "log_level": 0}).list_topics(timeout=0.5)


def test_an_unsupported_number_of_servers_is_refused(tmp_path: Path):
    """There is one, or there are three."""
    with pytest.raises(Fatal, match="brokers=2"):
        Cluster.start(tmp_path, brokers=2)


def test_offsets_are_committed_when_their_coordinator_is_gone(cluster, tmp_path):
    """A producer that knows the coordinator of a group, which has ended, finds the next one within a transaction."""
    patient = {"transaction_timeout_ms": 60_000}  # by default a search of over 10 s would be the transaction's end
    settings = load_settings(bootstrap_servers=cluster.direct_servers, data_dir=tmp_path, **patient)
    topic, group = make_topic(cluster, 1, 2, 3), f"group{clock.random_id()}"
    consumer = clients.consumer(settings, group)
    consumer.subscribe([topic])
    wait_until(consumer.assignment, "it has its partition", lambda: consumer.poll(0.1))
    producer = TransactionalProducer(settings, f"test{clock.random_id()}", Metrics.create(), threading.Event())
    producer.open()

    def commit(offset: int) -> None:
        producer.begin()
        producer.produce(topic, b"value", partition=0)
        producer.commit([TopicPartition(topic, 0, offset)], consumer)

    commit(1)
    gone = cluster.servers[cluster.coordinator_of_group(group)]
    gone.stop()
    admin = producer._producer
    wait_until(
        lambda: gone.node.id not in admin.list_topics(timeout=WAIT_S).brokers, "the producer knows that it ended"
    )
    commit(2)
    (committed,) = consumer.committed([TopicPartition(topic, 0)], WAIT_S)
    assert committed.offset == 2
    consumer.close()
