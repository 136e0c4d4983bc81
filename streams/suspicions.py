"""What an owner of partitions knows of deaths before its own, and leaves to those after it: see `streams.suspect`."""

from collections.abc import Mapping

from confluent_kafka import TopicPartition

from schemas.chunk import Place
from streams import clock
from streams.group import Member
from streams.suspect import Suspicion
from streams.transactions import StageProducer
from streams.window import Window


class Suspicions:
    """The suspicion of each partition since it is ours; None once what is suspect was committed. For one thread."""

    def __init__(self, member: Member, producer: StageProducer) -> None:
        self.me = clock.random_id()
        self._member, self._producer = member, producer
        self._of: dict[Place, Suspicion | None] = {}

    def at(self, place: Place, offset: int) -> Suspicion | None:
        """What is known of the chunk at `offset`: the first one of a partition, or one after what was committed.

        Raises:
            Retry: the brokers did not answer in time.
        """
        if place not in self._of:
            (committed,) = self._member.committed([place])
            found = Suspicion.parse(committed.metadata, self.me)
            self._of[place] = found if committed.offset == offset else found.elsewhere()
        return self._of[place]

    def is_open(self, *windows: Window) -> bool:
        """Whether the process that dies with one of these windows is to leave word of it."""
        return any(self._of[place] is not None for window in windows for place in window.next_offsets)

    def begin(self, window: Window) -> None:
        """Leave word of a window that is about to be computed, where it is the first one of a partition, or suspect.

        Raises:
            Retry: perhaps it was not left.
        """
        marks = {
            place: (window.first_offsets[place], suspicion.begun(until, self.me))
            for place, until in window.next_offsets.items()
            if (suspicion := self._of[place]) is not None
        }
        if marks:
            self.mark(marks)

    def mark(self, marks: Mapping[Place, tuple[int, Suspicion]]) -> None:
        """Leave word of what begins at offsets, of which nothing is published yet.

        Raises:
            Retry: perhaps it was not left.
        """
        self._producer.begin()
        self._producer.commit(
            [TopicPartition(*place, offset, metadata=str(left)) for place, (offset, left) in marks.items()],
            self._member.consumer,
        )

    def after(self, window: Window) -> dict[Place, Suspicion | None]:
        """What is to be committed with the outputs of a window."""
        found = {place: (self._of[place], offset) for place, offset in window.next_offsets.items()}
        return {place: suspicion and suspicion.before(offset) for place, (suspicion, offset) in found.items()}

    def committed(self, left: Mapping[Place, Suspicion | None]) -> None:
        """Note what was committed with the outputs of a window."""
        self._of.update(left)

    def clear(self) -> None:
        """Forget all: partitions went, or are read again from what is committed."""
        self._of.clear()
