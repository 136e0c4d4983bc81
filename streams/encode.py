"""Encode: misses in, embeddings and vectors out, both in one transaction with the offsets of the misses.

One thread owns all Kafka clients. It gathers windows, and while the engine computes one, gathers and publishes others.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

import numpy as np
from confluent_kafka import TopicPartition

from encoders.encoder import EncodedBatch
from encoders.engine import Engine
from encoders.load import load_encoder, warm_up
from schemas.chunk import parse_chunk, rekey
from schemas.content import fingerprinter, partition_of, split_fingerprints
from schemas.embedding import EmbeddingParts
from schemas.errors import Fatal, Retry
from schemas.internal_pb2 import Vectors
from schemas.public_pb2 import CACHED, COMPUTED
from streams import clock
from streams.attempts import keep_going, with_retries
from streams.failpoints import reach
from streams.group import Member
from streams.metrics import Metrics
from streams.recent import RecentVectors
from streams.role import begin
from streams.settings import Settings
from streams.topics import Topics
from streams.transactions import KeyValue, StageProducer
from streams.watchdog import watch
from streams.window import Window

_log = logging.getLogger("manyray.encode")

IN_FLIGHT_MAX = 2
"""Windows submitted and not yet published: one is computed while the one before is published."""
WINDOW_BATCHES = 6
"""Batches in a window, unless window_tokens is set: enough posts to sort by length, few enough to come out soon."""
FINISH_TIMEOUT_S = 60.0
_VECTORS_BYTES_MAX = 512 * 1024
_IDLE_WAIT_S = 0.1
_BUSY_WAIT_S = 0.005


@dataclass(slots=True)
class Submitted:
    """A window under way: which contents it computes, and where the vectors of the others come from."""

    window: Window
    computing: list[bytes]
    future: Future[EncodedBatch]
    known: dict[bytes, bytes]
    lent: dict[bytes, "Submitted"]
    queued_s: float
    vectors: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])

    def vector(self, fingerprint: bytes) -> bytes:
        """A content's vector; every window before this one is done."""
        return (
            self.vectors.get(fingerprint) or self.known.get(fingerprint) or self.lent[fingerprint].vector(fingerprint)
        )

    def settle(self, vectors: dict[bytes, bytes]) -> None:
        """Take what was computed, and what was lent: it then refers to no other window, which may be forgotten."""
        self.vectors = vectors
        self.known.update({fingerprint: lender.vector(fingerprint) for fingerprint, lender in self.lent.items()})
        self.lent.clear()


class Encode:
    """One encode process: a member of the group, an engine, and a producer."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        metrics: Metrics,
        engine: Engine,
        *,
        window_tokens: int,
        stop: threading.Event,
    ) -> None:
        """Open the producer, then become a member.

        Raises:
            Retry: `stop` was set before the brokers answered.
            Fatal: they did not answer.
        """
        self._settings, self._topics, self._metrics, self._engine = settings, topics, metrics, engine
        self._window_tokens = window_tokens
        self._wait_s = settings.encode_wait_ms / 1000
        self._parts = EmbeddingParts(topics.ray, topics.version)
        self._fingerprint = fingerprinter(topics.version, settings.salt.get_secret_value())
        self._recent = RecentVectors(settings.recent_vectors_mib * 2**20)
        self._window = Window()
        self._in_flight: deque[Submitted] = deque()
        self._dropped = False
        self.producer = StageProducer.create(
            settings, f"manyray.encode.{settings.ray}.{clock.random_id()}", metrics, stop, shared_id=False
        )
        with_retries(self.producer.open, stop)
        self.member = Member.join(
            settings,
            f"manyray.encode.{settings.ray}",
            [topics.misses],
            metrics,
            on_revoke=self._on_revoke,
            on_lost=self._drop,
        )

    def step(self) -> bool:
        """Do the most urgent thing: publish what is computed, else submit what is due, else read.

        Returns whether something was committed.

        Raises:
            Retry: something was not committed, or that is unknown: `recover`.
            Fatal: this process has to end.
        """
        if self._dropped:
            raise Retry("windows were dropped in a rebalance")
        now_s = clock.monotonic_s()
        full = self._window.is_full(self._window_tokens, self._settings.transaction_posts_max)
        due = full or self._window.is_old(now_s, self._wait_s)
        self.member.report_lag()
        if self._in_flight and self._in_flight[0].future.done():
            self._publish(self._in_flight[0])
            self._in_flight.popleft()
            return True
        if due and len(self._in_flight) < IN_FLIGHT_MAX:
            self._submit()
        elif full:
            wait([self._in_flight[0].future], _IDLE_WAIT_S)
        else:
            busy = bool(self._in_flight or self._window.chunks)
            self._read(min(self._wait_s, _BUSY_WAIT_S) if busy else _IDLE_WAIT_S)
        return False

    def recover(self) -> None:
        """After a Retry: drop what is under way, end the transaction, read again from what was committed."""
        self.member.waits_for = "it goes back to what is committed"
        self._drop()
        self.producer.open()
        self.member.rewind()
        self._dropped = False

    def finish(self) -> None:
        """Publish everything that is under way; nothing may go on top of windows that were dropped."""
        if self._dropped:
            return
        if self._window.chunks:
            self._submit()
        while self._in_flight:
            try:
                self._in_flight[0].future.result(FINISH_TIMEOUT_S)
            except TimeoutError:
                raise Retry(f"a window is not computed after {FINISH_TIMEOUT_S:.0f} s") from None
            self._publish(self._in_flight[0])
            self._in_flight.popleft()

    def close(self) -> None:
        """Leave the group; what is under way is published first, if it can be."""
        self.member.close()
        self.producer.close()

    def _read(self, wait_s: float) -> None:
        for message in self.member.read(1, wait_s):
            if self._dropped:  # in a rebalance, within this very call: what came after it is read again too
                return
            place = (message.topic() or "", message.partition() or 0)
            where = f"{place[0]}/{place[1]} offset {message.offset()}"
            chunk = parse_chunk(message.value(), where, accept_gaps=self._settings.accept_gaps)
            if chunk.version != self._topics.version:
                rekey(chunk, self._fingerprint, self._topics.version)
            self._window.add(chunk, place, message.offset() or 0, clock.monotonic_s())

    def _submit(self) -> None:
        window, self._window = self._window, Window()
        known: dict[bytes, bytes] = {}
        lent: dict[bytes, Submitted] = {}
        for fingerprint in window.texts:
            vector = self._recent.get(fingerprint)
            if vector is not None:
                known[fingerprint] = vector
            elif lender := next((earlier for earlier in self._in_flight if fingerprint in earlier.window.texts), None):
                lent[fingerprint] = lender
        computing = [
            fingerprint for fingerprint in window.texts if fingerprint not in known and fingerprint not in lent
        ]
        future = self._engine.submit([window.texts[fingerprint].decode() for fingerprint in computing])
        reach("encode.computing")
        self._in_flight.append(Submitted(window, computing, future, known, lent, clock.monotonic_s() - window.first_s))

    def _publish(self, done: Submitted) -> None:
        """One transaction: embeddings of all posts of a window, its new vectors, its offsets."""
        batch = done.future.result()
        if not np.isfinite(batch.vectors).all():
            raise Fatal(f"the encoder {self._settings.model} gives numbers that are not finite: check its weights")
        rows = np.ascontiguousarray(batch.vectors, dtype="<f4")
        size = rows.shape[1] * 4 if len(done.computing) else 0
        blob = rows.tobytes()
        done.settle(
            {fingerprint: blob[index * size : (index + 1) * size] for index, fingerprint in enumerate(done.computing)}
        )
        self.producer.begin()
        self.producer.produce_keyed(self._topics.embeddings, self._embeddings(done))
        for partition, value in pack_vectors(done.vectors, self._topics.version, self._settings.partitions):
            self.producer.produce(self._topics.vectors, value, partition=partition)
        reach("encode.sent")
        self.producer.commit(
            [TopicPartition(*place, offset) for place, offset in done.window.next_offsets.items()],
            self.member.consumer,
        )
        for fingerprint, vector in done.vectors.items():
            self._recent.put(fingerprint, vector)
        self.member.processed(done.window.next_offsets)
        self._observe(done, batch)

    def _embeddings(self, done: Submitted) -> Iterator[KeyValue]:
        now_ms = clock.now_ms()
        computed, cached = self._parts.head(COMPUTED, now_ms), self._parts.head(CACHED, now_ms)
        first = set(done.computing)  # the post for which a content was computed is the first one with it
        for chunk in done.window.chunks:
            fingerprints = split_fingerprints(chunk.fingerprints)
            contents = [self._parts.content(fingerprint, done.vector(fingerprint)) for fingerprint in fingerprints]
            sources = [self._parts.source(source.topic, source.partition) for source in chunk.sources]
            for index, post_id in enumerate(chunk.ids):
                content = chunk.contents[index]
                head = computed if fingerprints[content] in first else cached
                first.discard(fingerprints[content])
                own = self._parts.post(post_id, chunk.offsets[index], chunk.posted_ms[index])
                yield post_id.encode(), b"".join((head, sources[chunk.post_sources[index]], contents[content], own))

    def _observe(self, done: Submitted, batch: EncodedBatch) -> None:
        metrics, posts = self._metrics, done.window.posts
        metrics.encode_posts.inc(posts)
        metrics.encode_computed.inc(len(done.computing))
        metrics.encode_reused.inc(posts - len(done.computing))
        metrics.encode_tokens.inc(batch.tokens)
        metrics.encode_padded_tokens.inc(batch.padded_tokens)
        metrics.encode_batch_tokens.observe(batch.tokens)
        metrics.encode_seconds.observe(batch.encode_s)
        metrics.encode_queue_seconds.observe(done.queued_s)

    def _on_revoke(self) -> None:
        """Partitions go to another member: publish what is under way while its offsets may be committed."""
        try:
            self.finish()
        except Retry as error:
            _log.warning("given up in a rebalance, to be read again: %s", error)
            self._drop()

    def _drop(self) -> None:
        for submitted in self._in_flight:
            submitted.future.cancel()
        self._in_flight.clear()
        self._window = Window()
        self._dropped = True


def pack_vectors(vectors: dict[bytes, bytes], version: str, partitions: int) -> list[tuple[int, bytes]]:
    """Records of the `vectors` topic, each with its partition: half a megabyte at most each."""
    by_partition: dict[int, list[bytes]] = {}
    for fingerprint in vectors:
        by_partition.setdefault(partition_of(fingerprint, partitions), []).append(fingerprint)
    records: list[tuple[int, bytes]] = []
    for partition, fingerprints in by_partition.items():
        size = len(vectors[fingerprints[0]])
        at_once = max(1, _VECTORS_BYTES_MAX // size)
        for start in range(0, len(fingerprints), at_once):
            some = fingerprints[start : start + at_once]
            message = Vectors(
                version=version,
                dims=size // 4,
                fingerprints=b"".join(some),
                vectors=b"".join([vectors[fingerprint] for fingerprint in some]),
            )
            records.append((partition, message.SerializeToString()))
    return records


def run(settings: Settings, stop: threading.Event) -> None:
    """Run one encode process until `stop` is set.

    Raises:
        Fatal: it cannot start, or cannot go on.
    """
    topics, metrics, health = begin(settings, "encode", stop)
    health.waits_for = lambda: "it is loading its model"
    encoder = load_encoder(
        settings.model,
        revision=settings.revision,
        dtype=settings.dtype,
        max_tokens=settings.max_tokens,
        device=settings.device,
    )
    batch_tokens = settings.batch_tokens or encoder.batch_tokens
    # Here, and not on the engine's thread: see DECISIONS 23 before moving it.
    warm_up(encoder, batch_tokens)
    window_tokens = settings.window_tokens or WINDOW_BATCHES * batch_tokens
    with Engine(encoder, batch_tokens) as engine:
        encode = Encode(settings, topics, metrics, engine, window_tokens=window_tokens, stop=stop)
        member = encode.member
        health.waits_for = lambda: member.waits_for
        watch(settings, health, member.positions.copy, beat=lambda: engine.batches)
        try:
            keep_going(encode.step, encode.recover, stop)
        finally:
            encode.close()
