"""Laws of a consumer group's member, on a real broker."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from confluent_kafka import TopicPartition

from schemas.errors import Fatal
from streams import clients, clock
from streams.group import Member
from streams.health import JOINING
from streams.metrics import Metrics
from streams.settings import Settings
from streams.transactions import StageProducer
from tests.oracle import remove
from tests.test_transport import write
from tests.waiting import wait_until

pytestmark = pytest.mark.broker

STALL_S = 30.0
"""A broker that says nothing for so long fails a test instead of hanging it."""


@pytest.fixture
def group() -> str:
    """A group of this test alone."""
    return f"group{clock.random_id()}"


@contextmanager
def joined(settings: Settings, group: str, topic: str) -> Iterator[Member]:
    """A member, which leaves at the end."""
    member = Member.join(settings, group, [topic], Metrics.create())
    try:
        yield member
    finally:
        member.close()


def put(settings: Settings, topic: str, *values: bytes) -> None:
    """Records in partition 0."""
    producer = clients.producer(settings)
    for value in values:
        producer.produce(topic, value, partition=0)
    assert producer.flush(STALL_S) == 0


def take(member: Member, count: int) -> list[bytes]:
    """The next `count` values."""
    values: list[bytes] = []
    wait_until(
        lambda: len(values) == count,
        f"{count} records come",
        lambda: values.extend(message.value() for message in member.read(count - len(values), 0.1)),
    )
    return values


@pytest.fixture
def producer(settings: Settings) -> StageProducer:
    """A transactional one."""
    producer = StageProducer.create(settings, f"test{clock.random_id()}", Metrics.create(), threading.Event())
    producer.open()
    return producer


def read_on(member: Member, producer: StageProducer) -> None:
    """A step of who has read all."""
    assert member.read(1, 0.1) == []
    member.commit_ends(producer)


def commit(member: Member, topic: str, offset: int) -> None:
    """What a transaction would do."""
    member.consumer.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)


def test_a_new_group_reads_all_there_is(settings: Settings, topic: str, group: str) -> None:
    """From the oldest record, also where the first ones are gone already."""
    put(settings, topic, b"0", b"1", b"2")
    remove(settings, topic, 1)
    with joined(settings, group, topic) as member:
        assert take(member, 2) == [b"1", b"2"]


def test_a_group_goes_on_where_it_committed(settings: Settings, topic: str, group: str) -> None:
    """And `rewind` goes back there."""
    put(settings, topic, b"0", b"1", b"2")
    with joined(settings, group, topic) as member:
        take(member, 3)
        commit(member, topic, 1)
        member.rewind()
        assert take(member, 2) == [b"1", b"2"]
    with joined(settings, group, topic) as member:
        assert take(member, 2) == [b"1", b"2"]


def test_records_removed_before_they_were_read_stop_it(settings: Settings, topic: str, group: str) -> None:
    """They are posts that nobody will see: that is said and not passed over, unless the user accepts it."""
    put(settings, topic, b"0", b"1", b"2", b"3")
    with joined(settings, group, topic) as member:
        take(member, 4)
        commit(member, topic, 1)
    remove(settings, topic, 3)
    with (
        joined(settings, group, topic) as member,
        pytest.raises(Fatal, match=f"{topic}/0 no longer holds offset 1,.*set accept_gaps"),
    ):
        take(member, 1)
    with joined(settings.model_copy(update={"accept_gaps": True}), group, topic) as member:
        assert take(member, 1) == [b"3"]


def test_who_is_no_member_is_not_ready(settings: Settings, group: str) -> None:
    """Whoever has its coordinator may still wait to be taken, or have been put out."""
    nowhere = settings.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})
    member = Member.join(nowhere, group, ["topic"], Metrics.create())
    member._told(json.dumps({"cgrp": {"state": "up", "stateage": 3_600_000}}))
    assert member.waits_for == JOINING
    member.close()


def test_the_marker_behind_the_last_record_is_committed_too(
    settings: Settings, topic: str, group: str, producer: StageProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention removes it with its record: an offset before it would look as if a record had been removed."""
    monkeypatch.setattr("streams.group.ENDS_EVERY_S", 0.0)
    write(settings, topic, [([b"0", b"1"], True)])
    place = (topic, 0)
    with joined(settings, group, topic) as member:
        take(member, 2)
        member.commit_ends(producer)
        assert member.committed([place])[0].offset < 0  # not while something is under way
        producer.begin()
        producer.commit([TopicPartition(*place, 2, metadata="kept")], member.consumer)
        member.processed({place: 2})

        wait_until(lambda: member.positions[place] == 3, "the end is committed", partial(read_on, member, producer))
        (committed,) = member.committed([place])
        assert (committed.offset, committed.metadata) == (3, "kept")
        remove(settings, topic, 3)
        member.rewind()
        put(settings, topic, b"2")
        assert take(member, 1) == [b"2"]
    with joined(settings, group, topic) as member:
        assert take(member, 1) == [b"2"]


def test_all_was_read_before_it_was_removed(settings: Settings, topic: str, group: str) -> None:
    """Retention may empty a topic whose end was committed: nothing is missing then."""
    put(settings, topic, b"0", b"1")
    with joined(settings, group, topic) as member:
        take(member, 2)
        commit(member, topic, 2)
    remove(settings, topic, 2)
    with joined(settings, group, topic) as member:
        put(settings, topic, b"2")
        assert take(member, 1) == [b"2"]


def test_an_offset_that_does_not_move_is_committed_again(
    settings: Settings, topic: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brokers count how long they keep it from its last commit: in a stop it would soon be forgotten. Each is due once
    and again after `RENEW_S`.
    """
    monkeypatch.setattr("streams.group.ENDS_EVERY_S", 0.0)
    metrics = Metrics.create()
    producer = StageProducer.create(settings, f"test{clock.random_id()}", metrics, threading.Event())
    producer.open()

    def commits() -> float:
        return sum(one.value for one in metrics.transaction_seconds.collect()[0].samples if one.name.endswith("_count"))

    put(settings, topic, b"0")
    with joined(settings, group, topic) as member:
        take(member, 1)
        commit(member, topic, 1)
        member.rewind()
        for _ in range(3):
            member.commit_ends(producer)
        assert commits() == 1
        assert member.committed([(topic, 0)])[0].offset == 1
        monkeypatch.setattr("streams.group.RENEW_S", 0.0)
        member._renew_s.clear()
        for _ in range(3):
            member.commit_ends(producer)
        assert commits() == 4


def test_where_there_never_was_a_record_the_end_is_committed(
    settings: Settings, topic: str, group: str, producer: StageProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or records that come and go while nobody reads would be passed over: a new group begins at the oldest."""
    monkeypatch.setattr("streams.group.ENDS_EVERY_S", 0.0)
    place = (topic, 0)
    with joined(settings, group, topic) as member:
        wait_until(
            lambda: member.owned and member.committed([place])[0].offset == 0,
            "the end is committed",
            partial(read_on, member, producer),
        )
    put(settings, topic, b"0", b"1")
    remove(settings, topic, 1)
    with (
        joined(settings, group, topic) as member,
        pytest.raises(Fatal, match=f"{topic}/0 no longer holds offset 0,"),
    ):
        take(member, 1)


def test_at_a_stop_the_end_is_committed_at_once(
    settings: Settings, topic: str, group: str, producer: StageProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short it was at work: a stop may outlast what retention keeps. What the brokers refuse ends nothing."""
    monkeypatch.setattr("streams.group.ENDS_EVERY_S", 3_600.0)
    write(settings, topic, [([b"0"], True)])
    place = (topic, 0)
    with joined(settings, group, topic) as member:
        take(member, 1)
        member.commit_ends(producer)  # another one is not due for an hour
        producer.begin()
        producer.commit([TopicPartition(*place, 1)], member.consumer)
        member.processed({place: 1})

        wait_until(lambda: member._ends.get(place) == 2, "the end is read", partial(read_on, member, producer))
        assert member.committed([place])[0].offset == 1
        member.commit_last_ends(producer)
        assert member.committed([place])[0].offset == 2
        producer.close()
        member._renew_s.clear()
        member.commit_last_ends(producer)
