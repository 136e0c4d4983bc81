"""What the stages write with: a producer whose every failure is Retry or Fatal, and whose one cure is to be built anew.

librdkafka tells abortable, retriable, fenced and timed-out errors apart. We do not need to: a new producer with the
same transactional id ends whatever the old one left open (`init_transactions` waits for it), and the caller then
reads from Kafka what was committed. That also covers results that stay unknown (librdkafka has no KIP-890).

At least once the same steps go without a transaction: records are flushed before what says that they are done.
"""

import contextlib
import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from schemas.errors import Fatal, Retry
from streams import clients, clock
from streams.failpoints import reach
from streams.metrics import Metrics
from streams.settings import Settings

_log = logging.getLogger("manyray.transactions")

WAIT_S = 60.0
"""How long the brokers may take for one step of a transaction."""
STOP_WAIT_S = 5.0
VECTOR_BYTES_MAX = 32 * 2**20
"""Of the vectors in one transaction, about: brokers have to take it, and replicate it, within its time-out."""
_SLICE_S = 1.0
_SLICE_S_MAX = 4.0
_PAUSE_S = 0.02
KeyValue = tuple[bytes, bytes]
# A producer that was fenced says `_FATAL` ever after.
_FENCED = {KafkaError._FATAL, KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}


class Fenced(Fatal):
    """Another process has taken over."""


class StageProducer:
    """A stage's producer, which can be built anew; used by one thread. `create` says which of the two kinds it is."""

    def __init__(
        self,
        settings: Settings,
        transactional_id: str,
        metrics: Metrics,
        stop: threading.Event,
        *,
        shared_id: bool = True,
    ) -> None:
        """Once `stop` is set the brokers are waited for no longer than `STOP_WAIT_S`.

        With an id that no other process has, being fenced only tells of a transaction that took too long.
        """
        self._stop = stop
        self._shared_id = shared_id
        self._settings = settings
        self.transactional_id = transactional_id
        self._stage = transactional_id.removeprefix("manyray.").partition(".")[0]  # names its failpoints
        self._metrics = metrics
        self._began_s = 0.0
        self._producer: Producer | None = None

    @classmethod
    def create(
        cls,
        settings: Settings,
        transactional_id: str,
        metrics: Metrics,
        stop: threading.Event,
        *,
        shared_id: bool = True,
    ) -> "StageProducer":
        """The producer that the setting `delivery` asks for."""
        if settings.delivery == "exactly_once":
            return TransactionalProducer(settings, transactional_id, metrics, stop, shared_id=shared_id)
        return FlushedProducer(settings, transactional_id, metrics, stop, shared_id=False)  # which nobody fences

    def open(self) -> None:
        """Build the producer anew.

        Raises:
            Retry: the brokers did not answer in time.
            Fatal: this id may not be used.
        """
        raise NotImplementedError

    def begin(self) -> None:
        """Begin with the records that are to be committed together."""
        self._began_s = clock.perf_s()

    def settle(self) -> None:
        """Wait until what was produced so far cannot be lost if what is produced next is there.

        Raises:
            Retry: it may be lost: call `open`, then read what was committed.
        """

    def commit(self, offsets: Sequence[TopicPartition] = (), consumer: Consumer | None = None) -> None:
        """Commit, together with the offsets of a consumer's group if given.

        Raises:
            Retry: nothing, or perhaps all, of it was committed: call `open`, then read what was.
            Fatal: this producer may never write again: another one has taken its place.
        """
        raise NotImplementedError

    def produce(self, topic: str, value: bytes | None, **record: Any) -> None:
        """Queue one record of the transaction; a full queue is waited for, which bounds memory."""
        try:
            clients.produce(self._opened, topic, value, **record)
        except KafkaException as error:
            raise self._classify(error) from None

    def produce_keyed(self, records: Iterable[KeyValue], *topics: str) -> None:
        """Queue many records of a key and a value for each topic: the hot path, which takes the slower one only
        at a full queue.
        """
        produce = self._opened.produce
        for key, value in records:
            for topic in topics:
                try:
                    produce(topic, value, key)
                except (BufferError, KafkaException):
                    self.produce(topic, value, key=key)

    def close(self) -> None:
        """Drop the producer and what it has not sent.

        An open transaction is left to whoever opens the same id next, or to its time-out.
        """
        if self._producer is not None:
            with contextlib.suppress(
                KafkaException
            ):  # a fenced producer raises at every call, and is dropped all the same
                self._producer.purge()
                self._producer.poll(0)
            self._producer = None

    @property
    def _opened(self) -> Producer:
        if self._producer is None:
            raise Retry(f"producer {self.transactional_id} is not open")
        return self._producer

    def _call(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except KafkaException as error:
            raise self._classify(error) from None

    def _await(self, call: Any, *arguments: Any) -> None:
        """Call in slices, so that signals are heard meanwhile.

        Most calls resume where the slice before left off. Sending offsets begins anew, and takes up to four answers of
        the brokers: in short slices alone it would never end where each answer takes a while. So slices grow.
        """
        began_s = clock.monotonic_s()
        slice_s = _SLICE_S
        while True:
            try:
                call(*arguments, slice_s)
            except KafkaException as exception:
                error: KafkaError = exception.args[0]
                wait_s = STOP_WAIT_S if self._stop.is_set() else WAIT_S
                # At the end of a slice it is a time-out, or what the brokers asked to wait for, such as an older
                # producer's transaction that is being ended.
                if not error.retriable() or clock.monotonic_s() - began_s > wait_s:
                    raise self._classify(exception) from None
                slice_s = min(2 * slice_s, _SLICE_S_MAX)
                clock.sleep_s(_PAUSE_S)
            else:
                return

    def _classify(self, exception: KafkaException) -> Exception:
        error: KafkaError = exception.args[0]
        self._metrics.transaction_failures.inc()
        if error.code() in _FENCED and self._shared_id:
            return Fenced(
                f"another process has taken over {self.transactional_id}, or a transaction took longer than "
                f"transaction_timeout_ms ({error.str()}): this one stops, so that nothing is doubled"
            )
        if error.code() in (KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            return Fatal(f"not allowed to write as {self.transactional_id}: {error.str()}; grant it in the ACLs")
        _log.warning("transaction of %s failed, to be retried: %s", self.transactional_id, error.str())
        return Retry(f"transaction of {self.transactional_id}: {error.str()}")


class TransactionalProducer(StageProducer):
    """Exactly once: records, offsets and checkpoint are one transaction of one transactional id."""

    def open(self) -> None:
        """Build the producer anew: fences an older one of the same id, and ends its open transaction."""
        self.close()
        self._producer = clients.producer(self._settings, self.transactional_id)
        self._await(self._producer.init_transactions)

    def begin(self) -> None:
        """Begin a transaction."""
        super().begin()
        self._call(self._opened.begin_transaction)
        reach(f"{self._stage}.began")

    def commit(self, offsets: Sequence[TopicPartition] = (), consumer: Consumer | None = None) -> None:
        """Commit the transaction, with the offsets."""
        if consumer is not None:
            group = consumer.consumer_group_metadata()
            self._await(self._opened.send_offsets_to_transaction, list(offsets), group)
        reach(f"{self._stage}.committing")
        self._await(self._opened.commit_transaction)
        reach(f"{self._stage}.committed")
        self._metrics.transaction_seconds.observe(clock.perf_s() - self._began_s)


class FlushedProducer(StageProducer):
    """At least once: what says that records are done is written when the brokers have them; nobody is fenced."""

    _failed: KafkaError | None = None

    def open(self) -> None:
        """Build the producer anew; what the old one sent and was not told of may be there, and comes again."""
        self.close()
        self._failed = None
        self._producer = clients.producer(self._settings, on_failed=self._on_failed)

    def begin(self) -> None:
        """Begin; nothing is told to the brokers."""
        super().begin()
        reach(f"{self._stage}.began")

    def settle(self) -> None:
        """Wait until the brokers have every record."""
        began_s = clock.monotonic_s()
        while self._call(self._opened.flush, _SLICE_S):
            if clock.monotonic_s() - began_s > (STOP_WAIT_S if self._stop.is_set() else WAIT_S):
                late = f"not taken by the brokers within {clock.monotonic_s() - began_s:.0f} s"
                raise self._classify(KafkaException(KafkaError(KafkaError._TIMED_OUT, late)))
        if self._failed is not None:
            raise self._classify(KafkaException(self._failed))

    def commit(self, offsets: Sequence[TopicPartition] = (), consumer: Consumer | None = None) -> None:
        """Wait until the brokers have every record, then commit the offsets."""
        self.settle()
        reach(f"{self._stage}.committing")
        if consumer is not None:
            try:
                consumer.commit(offsets=list(offsets), asynchronous=False)
            except KafkaException as error:
                raise self._classify(error) from None
        reach(f"{self._stage}.committed")
        self._metrics.transaction_seconds.observe(clock.perf_s() - self._began_s)

    def _on_failed(self, error: KafkaError | None, _: Message) -> None:
        self._failed = error
