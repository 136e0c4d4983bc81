"""Whether all that was sent before a moment has come out: what lies in topics then, one after another, is done."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.errors import Retry
from streams import clients
from streams.settings import Settings

ASK_S = 5.0
"""For one answer of the brokers."""

Stage = tuple[str, Callable[[], Mapping[int, int]]]
"""A topic, and what says the next offset of each of its partitions that is to be done."""


class Drain:
    """The topics of a flow, in its order: one is looked at when those before it are done. For one thread."""

    def __init__(self, settings: Settings, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._draining: list[Stage] = []
        self._left: dict[int, int] | None = None
        """Of the first of these topics: ends that are not reached."""
        self._partitions = range(settings.partitions)
        with ExitStack() as held:
            self._uncommitted = held.enter_context(closing(clients.reader(settings, committed=False)))
            # A record tells all that is asked: a broker gives at least one.
            peeking = clients.reader(settings, fetch_message_max_bytes=1, queued_min_messages=1)
            self._peeking = held.enter_context(closing(peeking))
            self._held = held.pop_all()
        self.begin()

    def begin(self) -> None:
        """What `is_done` tells is of what is there when it is asked next."""
        self._draining, self._left = list(self._stages), None

    def is_done(self) -> bool:
        """Whether all is done that lay in the first topic when this was first asked, and in each later one when those
        before it were done: nothing that was sent before is under way.

        Raises:
            Retry: the brokers did not answer.
        """
        while self._draining:
            topic, done = self._draining[0]
            if self._left is None:
                self._left = {
                    at: clients.watermarks(self._uncommitted, topic, at, timeout_s=ASK_S)[1] for at in self._partitions
                }
            offsets = done()
            self._left = {
                at: end
                for at, end in self._left.items()
                if not self._is_past(TopicPartition(topic, at, offsets[at]), end)
            }
            if self._left:
                return False
            self._left = None
            self._draining.pop(0)
        return True

    def close(self) -> None:
        """Stop asking."""
        self._held.close()

    def _is_past(self, place: TopicPartition, end: int) -> bool:
        """Whether no record lies, nor may come to be seen, from a place on before the end; markers may lie there."""
        if place.offset >= end:
            return True
        first, _ = clients.first_from(self._peeking, place, timeout_s=ASK_S)
        return first >= end  # and not at the end that an open transaction makes, which may hide some


def committed_in(group: Consumer, topic: str, partitions: Sequence[int]) -> dict[int, int]:
    """The next offset of each partition by what a group has committed; 0 where it has nothing.

    `group` is a consumer of the group's name that is no member of it.

    Raises:
        Retry: the brokers did not answer.
    """
    try:
        found = group.committed([TopicPartition(topic, at) for at in partitions], ASK_S)
    except KafkaException as error:
        raise Retry(f"how far its group got in {topic}: {error.args[0].str()}") from None
    for one in found:
        if one.error is not None:  # its offset would look like that of a new group
            raise Retry(f"how far its group got in {one.topic}/{one.partition}: {one.error.str()}")
    return {one.partition: max(0, one.offset) for one in found}
