"""Compacted topics of few records, of which the last one of a key holds: read whole, then followed."""

import logging
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

from confluent_kafka import Consumer, KafkaError, TopicPartition

from schemas.errors import Fatal, Retry
from streams import clients, clock
from streams.attempts import with_retries
from streams.metrics import Metrics
from streams.settings import Settings
from streams.transactions import Fenced, StageProducer

_log = logging.getLogger("manyray.compacted")

READ_TIMEOUT_S = 30.0
_AT_ONCE = 1_000


class Latest:
    """The last value of each key of a topic of one partition, as far as it was taken. For one thread."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings, self._topic = settings, topic
        self._reader: Consumer = clients.reader(settings)
        self._values: dict[str, bytes] = {}
        self._offset = 0
        self._reader.assign([TopicPartition(topic, 0, 0)])

    def __getitem__(self, key: str) -> bytes:
        return self._values[key]

    def get(self, key: str) -> bytes | None:
        """The value of a key, if it has one."""
        return self._values.get(key)

    def under(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """What follows the prefix in the keys that begin with it, and their values, in the order of keys."""
        for key in sorted(self._values):
            if key.startswith(prefix):
                yield key.removeprefix(prefix), self._values[key]

    def take(self, wait_s: float = 0.0) -> bool:
        """Take what has come, waiting at most so long for the first of it; says whether there was anything.

        Raises:
            Retry: it cannot be read.
        """
        messages = self._reader.consume(_AT_ONCE, wait_s)
        for message in messages:
            error = message.error()
            self._offset = message.offset() or 0
            if error is None:
                self._offset += 1
                self._put((message.key() or b"").decode(errors="replace"), message.value())
            elif why := clients.why_unreadable(message):
                raise why
            elif error.code() != KafkaError._PARTITION_EOF:
                raise Retry(f"{self._topic}: {error.str()}")
        return bool(messages)

    def hear(self, wait_s: float = 0.0) -> bool:
        """As `take`, of who follows: brokers that do not answer have told nothing, and are asked again next time."""
        try:
            return self.take(wait_s)
        except Retry as error:
            _log.debug("not heard: %s", error)
            return False

    def catch_up(self) -> None:
        """Take all that was written until now; what a transaction that is being ended holds is waited for.

        Raises:
            Retry: the brokers did not answer in time.
        """
        with closing(clients.reader(self._settings, committed=False)) as uncommitted:
            _, end = clients.watermarks(uncommitted, self._topic, 0)
        deadline_s = clock.monotonic_s() + READ_TIMEOUT_S
        while self._offset < end:
            if not self.take(0.1) and clock.monotonic_s() > deadline_s:
                raise Retry(f"{self._topic} was not read to its end in {READ_TIMEOUT_S:.0f} s")

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    def _put(self, key: str, value: bytes | None) -> None:
        if value is None:
            self._values.pop(key, None)
        else:
            self._values[key] = value


@contextmanager
def changing(settings: Settings, topic: str, name: str) -> Generator[tuple[Latest, StageProducer]]:
    """What a topic holds, and the producer of what is to change in it, which the block begins and this commits.

    Changes under a name, a transactional id, are made one after another, however many are asked for at one moment.

    Raises:
        Fatal: another change was made at this moment.
        Retry: the brokers did not answer in time.
    """
    stop = threading.Event()
    exactly_once = settings.model_copy(update={"delivery": "exactly_once"})
    try:
        with closing(StageProducer.create(exactly_once, name, Metrics.create(), stop)) as producer:
            with_retries(producer.open, stop)  # from here on whoever was first is fenced
            with closing(Latest(settings, topic)) as latest:
                with_retries(latest.catch_up, stop)
                yield latest, producer
            producer.commit()
    except Fenced:
        raise Fatal(f"{topic} was changed by somebody else at this moment: try again") from None
