"""Laws of the transactional producer and of the checkpoint, on a real broker."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewTopic

from faults.cluster import Cluster
from schemas.errors import Fatal, Retry
from schemas.internal_pb2 import Source
from streams import clients, clock
from streams.checkpoint import KEY, Progress, read_progress
from streams.metrics import Metrics
from streams.settings import Settings
from streams.transactions import TransactionalProducer
from tests.waiting import wait_until

pytestmark = pytest.mark.broker
STALL_S = 30.0
"""A broker that says nothing for so long fails a test instead of hanging it."""


@pytest.fixture
def transactional_id() -> str:
    """An id of this test alone."""
    return f"test{clock.random_id()}"


def opened(settings: Settings, transactional_id: str) -> TransactionalProducer:
    """A producer that has fenced any other of its id."""
    producer = TransactionalProducer(settings, transactional_id, Metrics.create(), threading.Event())
    producer.open()
    return producer


def read(settings: Settings, topic: str, partition: int = 0, *, committed: bool = True) -> list[tuple]:
    """(key, value) of every record, as a reader sees them."""
    consumer = clients.reader(settings, committed=committed)
    consumer.assign([TopicPartition(topic, partition, 0)])
    found = []
    try:
        while (message := consumer.poll(STALL_S)) is not None:
            if message.error() is not None:  # the end
                return found
            found.append((message.key(), message.value()))
    finally:
        consumer.close()
    raise AssertionError(f"the end of {topic}/{partition} was not reached in {STALL_S} s")


def put(producer: TransactionalProducer, topic: str, *values: bytes, key: bytes | None = None) -> None:
    """One committed transaction."""
    producer.begin()
    for value in values:
        producer.produce(topic, value, key=key, partition=0)
    producer.commit()


def leave_open(settings: Settings, transactional_id: str, topic: str, *values: bytes, key: bytes | None = None):
    """A producer with a transaction that has reached the broker and is not ended: a process that hangs."""
    producer = clients.producer(settings, transactional_id)
    producer.init_transactions(60)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value, key, partition=0)
    assert producer.flush(30) == 0
    return producer


def test_a_transaction_is_all_or_nothing(settings, topic, transactional_id):
    """What was committed is there, keyed and plain; what was not is not, once another producer took over."""
    producer = opened(settings, transactional_id)
    producer.begin()
    producer.produce(topic, b"plain", key=b"k", partition=0)
    producer.produce(topic, None, key=b"tombstone", partition=0)
    producer.commit()
    leave_open(settings, transactional_id, topic, b"never")
    after = opened(settings, transactional_id)
    put(after, topic, b"after")
    assert read(settings, topic) == [(b"k", b"plain"), (b"tombstone", None), (None, b"after")]
    # It was really written, so it was the transaction that hid it.
    assert (None, b"never") in read(settings, topic, committed=False)


def test_open_gives_up_what_was_not_committed(settings, topic, transactional_id):
    """The one cure for every Retry: the transaction in hand is gone, the next one counts."""
    producer = opened(settings, transactional_id)
    producer.begin()
    producer.produce(topic, b"given up", partition=0)
    producer.open()
    put(producer, topic, b"done again")
    assert read(settings, topic) == [(None, b"done again")]


def test_a_second_producer_of_an_id_fences_the_first(settings, topic, transactional_id):
    """The first may not commit any more, and says so as Fatal; nothing of it is seen. The second goes on."""
    first = opened(settings, transactional_id)
    put(first, topic, b"mine")
    first.begin()
    first.produce(topic, b"stale", partition=0)
    second = opened(settings, transactional_id)
    with pytest.raises(Fatal, match=f"taken over {transactional_id}"):
        first.commit()
    put(second, topic, b"theirs")
    assert read(settings, topic) == [(None, b"mine"), (None, b"theirs")]


def fenced(settings: Settings, topic: str, transactional_id: str) -> TransactionalProducer:
    """A producer that has noticed that another took its place."""
    first = opened(settings, transactional_id)
    first.begin()
    first.produce(topic, b"stale", partition=0)
    opened(settings, transactional_id)
    with pytest.raises(Fatal):
        first.commit()
    return first


@pytest.mark.parametrize("step", ["begin", "produce", "produce_keyed", "commit"])
def test_a_fenced_producer_stays_fenced(settings, topic, transactional_id, step):
    """Whatever it does next is Fatal, never Retry: the cure for Retry would fence the new owner in its turn."""
    first = fenced(settings, topic, transactional_id)
    steps = {
        "begin": first.begin,
        "produce": lambda: first.produce(topic, b"more"),
        "produce_keyed": lambda: first.produce_keyed([(b"k", b"more")], topic),
        "commit": first.commit,
    }
    with pytest.raises(Fatal, match=f"taken over {transactional_id}"):
        steps[step]()


def test_a_fenced_producer_can_be_closed(settings, topic, transactional_id):
    """Without an error: the one that ended it is what counts."""
    first = fenced(settings, topic, transactional_id)
    first.close()
    with pytest.raises(Retry, match="not open"):
        first.begin()


def test_a_producer_with_an_id_of_its_own_goes_on_after_fencing(settings, topic, transactional_id):
    """Nobody else has its id, so it was its own transaction that took too long: Retry, and `open` cures it."""
    producer = TransactionalProducer(settings, transactional_id, Metrics.create(), threading.Event(), shared_id=False)
    producer.open()
    producer.begin()
    producer.produce(topic, b"too late", partition=0)
    opened(settings, transactional_id).close()  # bumps the epoch, as the broker does when a transaction times out
    with pytest.raises(Retry):
        producer.commit()
    producer.open()
    put(producer, topic, b"again")
    assert read(settings, topic) == [(None, b"again")]


def test_a_full_queue_is_waited_for(settings, topic, transactional_id):
    """With room for seven records, five hundred go out all the same, each once and in order."""
    small = settings.model_copy(update={"kafka": {"queue.buffering.max.messages": "7"}})
    producer = opened(small, transactional_id)
    records = [(b"same", b"v%d" % number) for number in range(500)]
    producer.begin()
    producer.produce_keyed(iter(records), topic)
    for key, value in records:
        producer.produce(topic, value, key=key)
    producer.commit()
    found = read(settings, topic, 0) or read(settings, topic, 1)
    assert found == records * 2


def test_keys_go_where_javas_clients_put_them(settings, topic, transactional_id):
    """murmur2, as in Kafka's own producer, so that a key stands in the same partition whoever wrote it."""
    producer = opened(settings, transactional_id)
    producer.begin()
    producer.produce_keyed([(b"%d" % number, b"") for number in range(8)], topic)
    producer.commit()
    found = {key: number for number in (0, 1) for key, _ in read(settings, topic, number)}
    assert [found[b"%d" % number] for number in range(8)] == [(_murmur2(b"%d" % n) & 0x7FFFFFFF) % 2 for n in range(8)]


def _murmur2(data: bytes) -> int:
    """org.apache.kafka.common.utils.Utils.murmur2, for keys shorter than four bytes."""
    assert len(data) < 4
    mixer, mask = 0x5BD1E995, 0xFFFFFFFF
    state = 0x9747B28C ^ len(data)
    for place in reversed(range(len(data))):
        state ^= data[place] << 8 * place
    if data:
        state = state * mixer & mask
    state ^= state >> 13
    state = state * mixer & mask
    return state ^ state >> 15


def test_a_quiet_producer_is_connected_again_at_once(settings, transactional_id, caplog):
    """A connection that is closed for having nothing to do is opened again at once, the fifth time as the first: the
    first post after a quiet minute does not wait for it.
    """
    longer_waits = {"debug": "broker", "reconnect.backoff.ms": "1000"}  # each is double the one before, up to the most
    with caplog.at_level(logging.DEBUG, "manyray.kafka"):
        producer = opened(settings.model_copy(update={"kafka": longer_waits}), transactional_id)

        def said(what: str) -> int:
            return sum(what in text for text in caplog.messages if "TxnCoordinator" in text)

        def poll() -> object:
            return producer._opened.poll(0.05)  # brings its log here

        wait_until(lambda: said("max idle time exceeded") >= 5, "it has closed its connection five times", poll)
        assert said("Delaying next reconnect") == 0
        producer.close()


def test_offsets_are_committed_with_the_records(settings, topic, transactional_id):
    """A group's offset and its metadata move with the transaction, and only with it."""
    group = f"group{clock.random_id()}"
    member = clients.consumer(settings, group)
    member.subscribe([topic])
    wait_until(member.assignment, "a partition is assigned", lambda: member.poll(0.1))
    producer = opened(settings, transactional_id)
    producer.begin()
    producer.produce(topic, b"with", partition=0)
    producer.commit([TopicPartition(topic, 0, 5, metadata="1:2,3")], member)
    producer.begin()
    producer.produce(topic, b"without", partition=0)
    producer.open()
    (found,) = member.committed([TopicPartition(topic, 0)], 30)
    member.close()
    assert (found.offset, found.metadata) == (5, "1:2,3")


def progress(offset: int) -> Progress:
    """A checkpoint with something in it."""
    return Progress(offset, {("posts", 1, ""): Source(topic="posts", partition=1, epoch_ms=7, sequence=offset)})


def save(producer: TransactionalProducer, topic: str, *offsets: int) -> None:
    """One committed transaction with checkpoints."""
    put(producer, topic, *(progress(offset).to_bytes() for offset in offsets), key=KEY)


def test_a_slow_network_does_not_stop_transactions(settings, tmp_path, transactional_id):
    """Answers that take 1.2 s each: offsets are committed with the records all the same, and soon."""
    with Cluster.start(tmp_path / "brokers", brokers=1) as cluster:
        settings = settings.model_copy(
            update={"bootstrap_servers": cluster.bootstrap_servers, "transaction_timeout_ms": 60_000}
        )
        admin = clients.admin_client(settings)
        for future in admin.create_topics([NewTopic("topic", 1, 1)]).values():
            future.result(STALL_S)
        producer = opened(settings, transactional_id)
        consumer = clients.consumer(settings, "group")
        consumer.subscribe(["topic"])
        wait_until(consumer.assignment, "it has its partition", lambda: consumer.poll(0.1))
        cluster.clients(1).delay(0.6)
        producer.begin()
        producer.produce("topic", b"value", partition=0)
        producer.commit([TopicPartition("topic", 0, 7)], consumer)
        cluster.clients(1).heal()
        (committed,) = consumer.committed([TopicPartition("topic", 0)], STALL_S)
        consumer.close()
        assert committed.offset == 7
        assert read(settings, "topic") == [(None, b"value")]


def test_without_a_checkpoint_it_begins_at_the_start(settings, topic):
    """A new partition's progress is none."""
    assert read_progress(settings, topic, 0) == Progress()


def test_the_last_committed_checkpoint_is_read(settings, topic, transactional_id):
    """Of many transactions the last one, and of each partition its own."""
    producer = opened(settings, transactional_id)
    for offset in (3, 5, 9):
        save(producer, topic, offset)
    producer.begin()
    producer.produce(topic, progress(4).to_bytes(), key=KEY, partition=1)
    producer.commit()
    assert read_progress(settings, topic, 0) == progress(9)
    assert read_progress(settings, topic, 1) == progress(4)


def test_a_predecessors_open_transaction_hides_nothing(settings, topic, transactional_id):
    """Fenced first, then read: the checkpoint it had committed counts, the one it left open does not."""
    save(opened(settings, transactional_id), topic, 5)
    hanging = leave_open(settings, transactional_id, topic, progress(6).to_bytes(), key=KEY)
    opened(settings, transactional_id)
    assert read_progress(settings, topic, 0) == progress(5)
    del hanging


def test_a_transaction_that_commits_meanwhile_is_waited_for(settings, topic, transactional_id):
    """The end is the one that an uncommitted reader sees: what is written there counts once its fate is known."""
    save(opened(settings, transactional_id), topic, 5)
    other = leave_open(settings, f"{transactional_id}-other", topic, progress(6).to_bytes(), key=KEY)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_progress, settings, topic, 0)
        wait([reading], 1.5)  # enough for a reader that does not wait to be done, and wrong
        other.commit_transaction(60)
        assert reading.result(60) == progress(6)


@pytest.mark.parametrize("count", [64, 65, 300, 2_000])
def test_a_checkpoint_before_a_long_aborted_tail_is_found(settings, topic, transactional_id, count):
    """However much a crashing owner wrote and never committed after it."""
    save(opened(settings, transactional_id), topic, 5)
    leave_open(
        settings, transactional_id, topic, *(progress(6 + number).to_bytes() for number in range(count)), key=KEY
    )
    opened(settings, transactional_id)
    assert read_progress(settings, topic, 0) == progress(5)


def test_a_tail_that_was_never_committed_is_no_checkpoint(settings, topic, transactional_id):
    """A topic that holds nothing but aborted records is as good as empty."""
    leave_open(settings, transactional_id, topic, *(progress(number).to_bytes() for number in range(200)), key=KEY)
    opened(settings, transactional_id)
    assert read_progress(settings, topic, 0) == Progress()


def test_the_last_of_many_checkpoints_is_read(settings, topic, transactional_id):
    """More than is looked at first, each in a transaction of its own or all in one."""
    producer = opened(settings, transactional_id)
    for offset in range(100):
        save(producer, topic, offset)
    assert read_progress(settings, topic, 0) == progress(99)
    save(producer, topic, *range(100, 400))
    assert read_progress(settings, topic, 0) == progress(399)
