"""Compacted topics of few records, of which the last one of a key holds: read whole, then followed."""

from collections.abc import Iterator
from contextlib import closing

from confluent_kafka import Consumer, KafkaError, TopicPartition

from schemas.errors import Retry
from streams import clients, clock
from streams.settings import Settings

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
