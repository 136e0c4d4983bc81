"""Laws of rejected records: what was written comes back byte by byte, and what is gone is told."""

import asyncio
import threading

import aiokafka
import pytest
from aiokafka.producer import message_accumulator
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from confluent_kafka import Message, Producer

from schemas.errors import Reject
from schemas.post import Post, decode_post
from streams import clients, clock
from streams.control import create_ray
from streams.metrics import Metrics
from streams.rejected import BYTES_MAX, Original, read_back, send_rejected
from streams.settings import Settings
from streams.transactions import StageProducer
from tests.oracle import read_records, remove, topics_of
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.broker

GAP = 3_000
"""Records between two that are sought: more than are read past."""


@pytest.fixture
def producer(settings: Settings) -> Producer:
    """A plain one."""
    return clients.producer(settings)


def put(producer: Producer, topic: str, count: int, partition: int = 0) -> None:
    """Records that tell where they lie."""
    for number in range(count):
        value = f"{partition} {number}".encode()
        producer.produce(topic, value, key=value, headers=[("h", value), ("h", b"")], partition=partition)
    assert producer.flush(WAIT_S) == 0


def stand_in(topic: str, partition: int, offset: int) -> Original:
    """What is known of a post at an offset."""
    return Original.rebuilt(Post(f"id{offset}", "text"), topic, partition, offset, 5)


def test_each_record_is_read_back_from_its_place(settings: Settings, producer: Producer, topic: str) -> None:
    """Whatever the order in which they are asked for, near or far from one another, some of them twice."""
    put(producer, topic, GAP)
    put(producer, topic, 5, partition=1)
    wanted = [(0, GAP - 1), (1, 4), (0, 0), (0, 1), (0, 1), (1, 0), (0, 700), (0, GAP - 2)]
    found = read_back(settings, [stand_in(topic, *place) for place in wanted])
    assert found.keys() == {(topic, *place) for place in wanted}
    for (_, partition, offset), one in found.items():
        value = f"{partition} {offset}".encode()
        assert (one.value, one.key, list(one.headers)) == (value, value, [("h", value), ("h", b"")])
        assert one.posted_ms > 5


def test_what_is_gone_is_rebuilt_and_says_so(settings: Settings, producer: Producer, topic: str) -> None:
    """By retention, with its topic, or past the end: the post comes as JSON, its id as the key; others come whole."""
    put(producer, topic, 20)
    remove(settings, topic, 10)
    gone = [stand_in(topic, 0, 3), stand_in(topic, 0, 9), stand_in(topic, 0, 99), stand_in(f"no{topic}", 0, 0)]
    found = read_back(settings, [*gone, stand_in(topic, 0, 10), stand_in(topic, 7, 0)])
    assert found[topic, 0, 10].value == b"0 10"
    for one in [*gone, stand_in(topic, 7, 0)]:
        rebuilt = found[one.place]
        assert rebuilt == one
        assert decode_post(rebuilt.value, 100) == Post(f"id{one.offset}", "text")
        assert rebuilt.key == f"id{one.offset}".encode()
        assert ("manyray-original", b"gone") in rebuilt.headers


def test_what_is_read_back_is_bounded(
    settings: Settings, producer: Producer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the bound nothing more is read: the posts of the rest come as JSON, and a header says why."""
    put(producer, topic, 5)
    (first,) = read_back(settings, [stand_in(topic, 0, 0)]).values()
    monkeypatch.setattr("streams.rejected.READ_BACK_BYTES_MAX", first.size_bytes)
    found = read_back(settings, [stand_in(topic, 0, offset) for offset in range(5)])
    assert [one.value for one in found.values()][:2] == [b"0 0", b"0 1"]
    for one in list(found.values())[2:]:
        assert decode_post(one.value, 100) == Post(f"id{one.offset}", "text")
        assert list(one.headers) == [("manyray-original", b"not_read")]


class _NotText(str):
    """A header's name as another language's client may write it."""

    def encode(self, *_: object) -> bytes:
        return b"\xff"


def test_a_header_whose_name_is_no_text_is_left_out(
    settings: Settings, producer: Producer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brokers take it, and confluent-kafka cannot give it: the rest of the record is kept, and a header says so."""
    for module in (message_accumulator, aiokafka.producer.producer):
        monkeypatch.setattr(module, "DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)

    async def write() -> None:
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as foreign:
            await foreign.send_and_wait(topic, b"value", key=b"key", partition=0, headers=[(_NotText("name"), b"")])

    asyncio.run(write())
    put(producer, topic, 1)
    first, second = sorted(read_records(settings, topic), key=lambda message: message.offset() or 0)
    assert Original.of(first).headers == [("manyray-original", b"headers_unreadable")]
    assert (first.value(), first.key()) == (b"value", b"key")
    assert len(Original.of(second).headers) == 2


def test_a_rejected_record_is_what_was_written_and_why(settings: Settings, producer: Producer, topic: str) -> None:
    """Value, key and headers are untouched, and ours come after them."""
    put(producer, topic, 1)
    sender = StageProducer.create(settings, f"test{clock.random_id()}", Metrics.create(), threading.Event())
    sender.open()
    sender.begin()
    (original,) = read_back(settings, [stand_in(topic, 0, 0)]).values()
    mark = clock.random_id()
    create_ray(settings)
    send_rejected(sender, topics_of(settings), original, Reject("a_reason", mark))
    sender.commit()
    (record,) = await_rejected(settings, mark, 1)
    assert (record.value(), record.key()) == (b"0 0", b"0 0")
    assert record.headers() == [
        ("h", b"0 0"),
        ("h", b""),
        ("manyray-ray", settings.ray.encode()),
        ("manyray-reason", b"a_reason"),
        ("manyray-detail", mark.encode()),
        ("manyray-topic", topic.encode()),
        ("manyray-partition", b"0"),
        ("manyray-offset", b"0"),
        ("manyray-posted-ms", str(original.posted_ms).encode()),
        ("manyray-version", topics_of(settings).version.encode()),
    ]


def await_rejected(settings: Settings, detail: str, count: int) -> list[Message]:
    """Wait for so many rejected records with this detail, which tells them from those of other tests."""
    found: list[Message] = []

    def look() -> None:
        found[:] = [
            record
            for record in read_records(settings, "rejected")
            if dict(record.headers())["manyray-detail"] == detail.encode()
        ]

    wait_until(lambda: len(found) >= count, "what is committed can be read", look)
    return found


def test_what_is_too_large_to_write_is_left_out_of_a_rejected_record(settings: Settings) -> None:
    """A few hundred KB on their way in, more than a client may send as they come out: a header says so."""
    create_ray(settings)
    large = b"x" * BYTES_MAX
    cases = {
        b"0": Original("posts", 0, 0, 5, large[3:], b"key"),
        b"1": Original("posts", 0, 1, 5, large, b"key"),
        b"2": Original("posts", 0, 2, 5, b"value", large, [("h", None)]),
        b"3": Original("posts", 0, 3, 5, large[3_000_000:], None, [("h", large[:3_000_000])]),
        b"4": Original("posts", 0, 4, 5, None, b"key", [("h", large)]),
    }
    stage = StageProducer.create(settings, f"manyray.ingest.{clock.random_id()}", Metrics.create(), threading.Event())
    stage.open()
    stage.begin()
    mark = clock.random_id()
    for one in cases.values():
        send_rejected(stage, topics_of(settings), one, Reject("text_too_long", mark))
    stage.commit()
    stage.close()
    found = {}
    for record in await_rejected(settings, mark, len(cases)):
        headers = dict(record.headers())
        found[headers["manyray-offset"]] = (
            record.value(),
            record.key(),
            "h" in headers,
            headers.get("manyray-original"),
        )
    assert found == {
        b"0": (large[3:], b"key", False, None),
        b"1": (None, b"key", False, b"too_large"),
        b"2": (None, None, False, b"too_large"),
        b"3": (None, None, True, b"too_large"),
        b"4": (None, None, False, b"too_large"),
    }
