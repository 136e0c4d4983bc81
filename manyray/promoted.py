"""Subscribing to a ray by its bare name: embeddings of the version that the name meant when each post came."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Literal

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from manyray.epochs import Epoch, epochs_of, first_open
from manyray.subscription import Batch, Subscription, read_batch
from schemas.chunk import Place
from schemas.errors import Fatal, Retry
from streams import clock
from streams.compacted import Latest
from streams.control import ray_in

_log = logging.getLogger("manyray.subscription")

HOLD_S = 60.0
"""How long the next version waits while nobody has said where the embeddings of the one before it end."""
LOOK_S = 5.0
"""How often it is asked whether all members of the group have read the version before."""
_ASK_S = 30.0

Start = Literal["earliest", "latest"]
OnSwitch = Callable[[str, str], object]


class PromotedSubscription(Subscription):
    """As `Subscription`, over the topics of versions, one after another, each up to where its embeddings end.

    Each batch is of one version. `on_switch` is called with the version before and the new one, before the first batch
    of the new one is handed out. Of several members of a group each goes on to the next version when what it owns of
    the one before is read, and is there for what others leave of it until all of it is.
    """

    def __init__(
        self, consumer: Consumer, name: str, control: Latest, *, start: Start, on_switch: OnSwitch, **how: Any
    ) -> None:
        """Use `Client.subscribe`. `control` is the ray's control topic, read to its end, and closed with this.

        Raises:
            Retry: the brokers did not answer.
            Fatal: the versions' topics may not be read.
        """
        self._name, self._control, self._on_switch = name, control, on_switch
        self._version = ""
        """The last one that the caller was told of."""
        self._told = 0
        """The number of its epoch: nobody is told of one before it."""
        self._epochs: tuple[Epoch, ...] = epochs_of(name, ray_in(control))
        self._reached: dict[Place, int] = {}
        """Up to where each partition owned is read."""
        self._uncommitted: set[Place] = set()
        """Partitions owned of which the group has committed nothing."""
        self._read_ahead: deque[tuple[Batch, dict[Place, int]]] = deque()
        self._topics: list[str] = []
        self._ended_s = math.inf
        """When the version that is read was heard to be followed by another, with nobody saying where it ends."""
        self._look_s = 0.0
        committed = _committed(consumer, {epoch.topic for epoch in self._epochs})
        if not committed:
            raise Fatal(f"no topic of the versions of {name} can be seen: grant Read on embeddings.{name}. in the ACLs")
        self._begins_at_end = start == "latest"
        """Where nothing is committed, in the first version that is read."""
        is_last = self._begins_at_end and max(committed.values()) < 0
        self._at = len(self._epochs) - 1 if is_last else first_open(self._epochs, committed)
        self._open = self._at
        """The first epoch that not all members have read; those up to `_at` are read."""
        super().__init__(consumer, self._epochs[self._at].topic, **how)

    def close(self, *, commit: bool = True) -> None:
        """As `Subscription.close`."""
        if not self._closed:
            self._control.close()
        super().close(commit=commit)

    @property
    def _epoch(self) -> Epoch:
        return self._epochs[self._at]

    def _subscribe(self) -> None:
        """To the version that is read now, and those before it that others of the group have not read; where nobody
        says in time where it ends, to all that come after it too.
        """
        self.topic = self._epoch.topic
        last = len(self._epochs) - 1 if clock.monotonic_s() - self._ended_s > HOLD_S else self._at
        topics = list(dict.fromkeys(epoch.topic for epoch in self._epochs[self._open : last + 1]))
        if topics != self._topics:
            self._topics = topics
            how = {"on_assign": self._assigned, "on_revoke": self._revoked, "on_lost": self._revoked}
            self._consumer.subscribe(topics, **how)

    def _read(self) -> Batch | None:
        if not self._read_ahead:
            self._follow()
            self._take(self._consumer.consume(self.batch_posts, self._wait_s))
        if not self._read_ahead:
            return None
        version = self._read_ahead[0][0].version
        number = self._number_of(version)
        if version and version != self._version and number >= self._told:
            if self._version:
                _log.warning("ray %s: version %s from here on, %s before", self._name, version, self._version)
                self._on_switch(self._version, version)
            self._version, self._told = version, number
        batch, offsets = self._read_ahead.popleft()
        self._handed_out.update(offsets)
        return batch

    def _number_of(self, version: str) -> int:
        """The number of the epoch that a version's embeddings are of, as it is read now."""
        numbers = [number for number, epoch in enumerate(self._epochs) if epoch.version == version]
        return max((number for number in numbers if number <= self._at), default=min(numbers, default=0))

    def _take(self, messages: Iterable[Message]) -> None:
        """Sort what came into batches, each of one topic; what is nobody's need not come again."""
        by_topic: dict[str, list[Message]] = {}
        done: dict[str, dict[Place, int]] = {}
        for message in messages:
            place, offset = (message.topic() or "", message.partition() or 0), message.offset() or 0
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                by_topic.setdefault(place[0], []).append(message)
                continue
            if place not in self._reached:  # it is of a version that was left, or went to another member
                continue
            self._reached[place] = offset + (error is None)
            end = self._end_of(place, offset)
            if end is not None:
                done.setdefault(place[0], {})[place] = end
            elif error is None:
                by_topic.setdefault(place[0], []).append(message)
            elif place in self._uncommitted:  # so that it goes on here, and not at the end that is then
                done.setdefault(place[0], {})[place] = offset
                self._uncommitted.discard(place)
        for topic in by_topic.keys() | done.keys():
            offsets: dict[Place, int] = {}
            batch = read_batch(by_topic.get(topic, []), offsets, of_bare_name=True)
            for place, offset in done.get(topic, {}).items():  # also where records lie behind what ended
                offsets[place] = max(offset, offsets.get(place, 0))
            if batch is not None:
                self._read_ahead.append((batch, offsets))
            else:
                self._handed_out.update(offsets)

    def _follow(self) -> None:
        """Hear of promotions, and go on to the next version where the one that is read has ended."""
        if self._control.hear():
            before, self._epochs = self._epochs, epochs_of(self._name, ray_in(self._control))
            # Of a version that was retired meanwhile there is nothing left to read.
            left = {(epoch.version, tuple(epoch.starts.items())) for epoch in self._epochs}
            is_left = [(epoch.version, tuple(epoch.starts.items())) in left for epoch in before]
            last = len(self._epochs) - 1
            self._at, self._open, self._told = (
                min(sum(is_left[:number]), last) for number in (self._at, self._open, self._told)
            )
        is_last = self._at == len(self._epochs) - 1
        own = [(place, at) for place, at in self._reached.items() if place[0] == self._epoch.topic]
        is_read = bool(own) and all(self._end_of(place, at) is not None for place, at in own)
        if not is_last and is_read:
            self._at, self._ended_s, self._begins_at_end = self._at + 1, math.inf, False
            self._go_back()
        elif not is_last and self._epoch.ends is None:
            self._ended_s = min(self._ended_s, clock.monotonic_s())
        if self._open < self._at and clock.monotonic_s() > self._look_s:
            self._look_s = clock.monotonic_s() + LOOK_S
            topics = {epoch.topic for epoch in self._epochs[self._open : self._at + 1]}
            with suppress(Retry):  # not known now: it is asked again
                committed = _committed(self._consumer, topics)
                self._open += first_open(self._epochs[self._open : self._at + 1], committed)
        self._subscribe()

    def _go_back(self) -> None:
        """To where the epoch begins, in partitions that were read past the end of an earlier one of its version, also
        of a topic that was left and is not given back yet.
        """
        if self._epoch.topic not in {epoch.topic for epoch in self._epochs[: self._at]}:
            return
        own = [place for place in self._reached if place[0] == self._epoch.topic]
        self._reached.update({place: self._epoch.starts.get(place[1], 0) for place in own})
        places = [TopicPartition(*place, self._reached[place]) for place in own]
        try:
            self._consumer.incremental_unassign(places)
            self._consumer.incremental_assign(places)
        except KafkaException as error:
            raise Retry(f"going back: {error.args[0].str()}") from None

    def _end_of(self, place: Place, offset: int) -> int | None:
        """Where the epoch that is read of a partition's topic ends, if an offset is behind that."""
        epoch = next((epoch for epoch in reversed(self._epochs[: self._at + 1]) if epoch.topic == place[0]), None)
        if epoch is None or epoch.ends is None or epoch.holds(place[1], offset):
            return None
        return min(offset, epoch.ends.get(place[1], 0))

    def _assigned(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        try:
            committed = consumer.committed(partitions, _ASK_S)
        except KafkaException as error:  # librdkafka asks again by itself, and begins where it is told
            _log.warning("what the group has read is not known: %s", error.args[0].str())
            committed = partitions
        starts: list[TopicPartition] = []
        for one in committed:
            place = (one.topic, one.partition)
            at = one.offset
            if committed is not partitions and one.error is None:
                at = OFFSET_END if at < 0 and self._begins_at_end else self._start_of(place, max(at, 0))
                if one.offset < 0:
                    self._uncommitted.add(place)
            self._reached[place] = max(at, 0)
            starts.append(TopicPartition(*place, at))
        consumer.incremental_assign(starts)

    def _start_of(self, place: Place, offset: int) -> int:
        """Where a partition is read on that is read up to an offset: in the first stretch that is open there."""
        for epoch in self._epochs[self._open :]:
            if epoch.topic == place[0] and epoch.holds(place[1], offset):
                return max(offset, epoch.starts.get(place[1], 0))
        return offset

    def _revoked(self, _consumer: Any, partitions: list[TopicPartition]) -> None:
        for one in partitions:
            self._reached.pop((one.topic, one.partition), None)
            self._uncommitted.discard((one.topic, one.partition))


def _committed(consumer: Consumer, topics: Iterable[str]) -> dict[Place, int]:
    """What a consumer's group has committed of every partition of topics; negative where that is nothing."""
    try:
        listed = consumer.list_topics(timeout=_ASK_S).topics
        places = [TopicPartition(topic, at) for topic in topics if topic in listed for at in listed[topic].partitions]
        found = consumer.committed(places, _ASK_S)
    except KafkaException as error:
        raise Retry(f"what the group has read is not known: {error.args[0].str()}") from None
    for one in found:
        if one.error is not None:
            raise Retry(f"what the group has read of {one.topic}/{one.partition} is not known: {one.error.str()}")
    return {(one.topic, one.partition): one.offset for one in found}
