"""Encode: misses in, embeddings and vectors out, both in one transaction with the offsets of the misses.

One thread owns all Kafka clients. It gathers windows, and while the engine computes one, gathers and publishes others.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import wait

from confluent_kafka import TopicPartition

from encoders.encoder import EncodedBatch
from encoders.engine import Engine
from encoders.load import load_encoder, measure_peak, warm_up
from schemas.chunk import Place, parse_chunk, part_of, rekey
from schemas.content import fingerprinter, split_fingerprints
from schemas.embedding import EmbeddingParts
from schemas.errors import Fatal, Reject, Retry
from schemas.internal_pb2 import Chunk
from streams import clock
from streams.attempts import keep_going, with_retries
from streams.failpoints import reach
from streams.gpu import register_gpu
from streams.group import Member
from streams.metrics import Metrics
from streams.recent import RecentVectors
from streams.rejected import Original, read_back, send_rejected
from streams.role import begin
from streams.settings import Settings
from streams.submitted import DETAILS, Submitted, pack_vectors
from streams.suspect import KILLS_ENCODER, Suspicion
from streams.suspicions import Suspicions
from streams.topics import Topics
from streams.transactions import VECTOR_BYTES_MAX, StageProducer
from streams.version import model_of
from streams.watchdog import ended_after, watch
from streams.window import Window

_log = logging.getLogger("manyray.encode")

IN_FLIGHT_MAX = 2
"""Windows submitted and not yet published: one is computed while the one before is published."""
WINDOW_ROUNDS = 2
"""Batches of each worker in a window, unless window_tokens is set: enough to share out, few enough to come out soon."""
UNEMBEDDED_MAX = 8
"""Distinct contents in a row without a vector: so many are not the fault of posts."""
WARM_UP_TIMEOUT_S = 300.0
"""A device that hangs answers nobody; a large model on a slow one takes minutes."""
_IDLE_WAIT_S = 0.1
_BUSY_WAIT_S = 0.005


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
        vector_bytes = max(1, engine.encoder.dims * topics.form.bits // 8)
        self._posts_max = max(1, min(settings.transaction_posts_max, VECTOR_BYTES_MAX // vector_bytes))
        self._parts = EmbeddingParts(topics.ray, topics.version, topics.form)
        self._fingerprint = fingerprinter(topics.version, settings.salt.get_secret_value())
        for reason in DETAILS:  # a series that begins at its first rejection has not grown, and alerts nobody
            metrics.encode_rejected.labels(reason)
        self._recent = RecentVectors(settings.recent_vectors_mib * 2**20)
        self._window = Window()
        self._in_flight: deque[Submitted] = deque()
        self._unsure = False
        """What was read is dropped, or perhaps published: nothing more is, until it is read again."""
        self._trial: Iterator[bool] | None = None
        self._unembedded: set[bytes] = set()
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
        self._suspicions = Suspicions(self.member, self.producer)
        metrics.encode_batch_tokens.set_function(lambda: engine.batch_tokens)
        metrics.queue_length.labels("windows").set_function(lambda: len(self._in_flight))
        metrics.queue_length.labels("window_posts").set_function(lambda: self._window.posts)

    def step(self) -> bool:
        """Do the most urgent thing: publish what is computed, else submit what is due, else read.

        Returns whether something was committed.

        Raises:
            Retry: something was not committed, or that is unknown: `recover`.
            Fatal: this process has to end.
        """
        if self._unsure:
            raise Retry("windows were dropped in a rebalance")
        now_s = clock.monotonic_s()
        full = self._window.is_full(self._window_tokens, self._posts_max)
        due = full or self._window.is_old(now_s, self._wait_s)
        self.member.report_lag()
        if self._trial is not None:
            if next(self._trial, False):
                return True
            self._trial = None
        if self._in_flight and self._in_flight[0].future.done():
            self._publish_first()
            return True
        if due and self._may_begin():
            self._begin()
        elif full:
            wait([self._in_flight[0].future], _IDLE_WAIT_S)
        else:
            self.member.commit_ends(self.producer)
            busy = bool(self._in_flight or self._window.chunks)
            self._read(min(self._wait_s, _BUSY_WAIT_S) if busy else _IDLE_WAIT_S)
        return False

    def recover(self) -> None:
        """After a Retry: drop what is under way, end the transaction, read again from what was committed."""
        self.member.waits_for = "it goes back to what is committed"
        self._drop()
        self.producer.open()
        self.member.rewind()
        self._unsure = False

    def finish(self) -> None:
        """Publish everything that is under way, unless something before it was dropped, or may be there already."""
        if self._unsure:
            return
        while self._in_flight or self._window.chunks:
            if not self._in_flight:
                self._begin()
            self._await(self._in_flight[0])
            self._publish_first()

    def close(self) -> None:
        """Leave the group; what is under way is published first, if it can be."""
        self.member.close()
        self.producer.close()

    def _read(self, wait_s: float) -> None:
        """Read a chunk into the window, or begin with trying its contents."""
        for message in self.member.read(1, wait_s):
            if self._unsure:  # in a rebalance, within this very call: what came after it is read again too
                return
            place = (message.topic() or "", message.partition() or 0)
            where = f"{place[0]}/{place[1]} offset {message.offset()}"
            chunk = parse_chunk(message.value(), where, accept_gaps=self._settings.accept_gaps)
            if chunk.version != self._topics.version:
                rekey(chunk, self._fingerprint, self._topics.version)
            offset = message.offset() or 0
            suspicion = self._suspicions.at(place, offset)
            if suspicion is None or not suspicion.is_suspect:
                self._window.add(chunk, place, offset, clock.monotonic_s())
            else:
                self._trial = self._try(chunk, place, offset, suspicion)

    def _may_begin(self) -> bool:
        """Whether one more window may be computed. The first one of a partition is alone: if we die, it was that."""
        if not self._in_flight:
            return True
        last = self._in_flight[-1].window
        return len(self._in_flight) < IN_FLIGHT_MAX and not self._suspicions.is_open(self._window, last)

    def _begin(self) -> None:
        self._suspicions.begin(self._window)
        window, self._window = self._window, Window()
        self._in_flight.append(self._submit(window))

    def _try(self, chunk: Chunk, place: Place, offset: int, suspicion: Suspicion) -> Iterator[bool]:
        """Compute and publish a suspect chunk alone; if it killed, what is left of it, a content a step.

        Between two steps nothing is open, so that neither a stop nor a failed transaction counts as a death.
        """
        self.finish()  # what came before is none of it
        if not suspicion.is_careful:
            self._window.add(chunk, place, offset, clock.monotonic_s())
            self.finish()
            yield True
            return
        fingerprints = split_fingerprints(chunk.fingerprints)
        for content in range(suspicion.content, len(fingerprints)):
            part = Window()
            part.add(part_of(chunk, content), place, offset, clock.monotonic_s())
            if suspicion.is_found:
                done = self._submit(part, {fingerprints[content]: KILLS_ENCODER})
            else:
                self._suspicions.mark({place: (offset, suspicion.tried(self._suspicions.me))})
                done = self._submit(part)
                self._await(done)
                self._suspicions.mark({place: (offset, suspicion)})
            suspicion = suspicion.after_content()
            if content + 1 < len(fingerprints):
                part.next_offsets[place] = offset
                self._publish(done, {place: suspicion})
            else:
                self._publish(done, self._suspicions.after(part))
            yield True

    def _submit(self, window: Window, refused: Mapping[bytes, str] | None = None) -> Submitted:
        """Give the engine what is to be computed of a window; `refused` are contents that are not, and why."""
        failed = dict(refused or {})
        known: dict[bytes, bytes] = {}
        lent: dict[bytes, Submitted] = {}
        for fingerprint in window.texts:
            vector = self._recent.get(fingerprint)
            if vector is not None:
                known[fingerprint] = vector
            elif lender := next((earlier for earlier in self._in_flight if fingerprint in earlier.window.texts), None):
                lent[fingerprint] = lender
        computing = [
            fingerprint
            for fingerprint in window.texts
            if fingerprint not in known and fingerprint not in lent and fingerprint not in failed
        ]
        future = self._engine.submit([window.texts[fingerprint].decode() for fingerprint in computing])
        reach("encode.computing")
        queued_s = clock.monotonic_s() - window.first_s
        return Submitted(window, computing, future, known, lent, queued_s, failed=failed)

    def _publish_first(self) -> None:
        done = self._in_flight[0]
        self._unsure = True  # whatever ends this, until it is forgotten it may be there already
        self._publish(done, self._suspicions.after(done.window))
        self._in_flight.popleft()
        self._unsure = False

    def _publish(self, done: Submitted, left: Mapping[Place, Suspicion | None]) -> None:
        """One transaction: embeddings of all posts of a window, or why they have none; its new vectors; its offsets.

        `left` is what stays to be known of what comes next in its partitions.
        """
        batch = done.future.result()
        done.settle(batch, self._topics.form)
        self._check_encoder(done)
        rejected = self._rejected(done)
        self.producer.begin()
        for original, cause in rejected:
            send_rejected(self.producer, self._topics, original, cause)
        self.producer.produce_keyed(self._topics.embeddings, done.embeddings(self._parts, clock.now_ms()))
        for partition, value in pack_vectors(done.vectors, self._topics, self._settings.partitions):
            self.producer.produce(self._topics.vectors, value, partition=partition)
        reach("encode.sent")
        self.producer.commit(
            [
                TopicPartition(*place, offset, metadata=str(left[place] or ""))
                for place, offset in done.window.next_offsets.items()
            ],
            self.member.consumer,
        )
        for fingerprint, vector in done.vectors.items():
            self._recent.put(fingerprint, vector)
        self._suspicions.committed(left)
        self.member.processed(done.window.next_offsets)
        self._observe(done, batch, rejected)

    def _check_encoder(self, done: Submitted) -> None:
        """Tell an encoder that is broken, or has its memory taken, from texts that are too much for it."""
        if done.vectors:
            self._unembedded.clear()
            return
        self._unembedded.update(one for one, reason in done.failed.items() if reason != KILLS_ENCODER)
        if len(self._unembedded) >= UNEMBEDDED_MAX:
            reasons = ", ".join(sorted(set(done.failed.values())))
            raise Fatal(
                f"the encoder {self._settings.model} has no vector for {len(self._unembedded)} contents in a row "
                f"({reasons}): check its weights, and who else takes its device's memory"
            )

    def _rejected(self, done: Submitted) -> list[tuple[Original, Reject]]:
        """The posts of a window that get no embedding, as they were written."""
        unembedded = list(done.unembedded())
        originals = read_back(self._settings, [rebuilt for rebuilt, _ in unembedded])
        return [(originals[rebuilt.place], cause) for rebuilt, cause in unembedded]

    def _observe(self, done: Submitted, batch: EncodedBatch, rejected: list[tuple[Original, Reject]]) -> None:
        metrics, posts = self._metrics, done.window.posts - len(rejected)
        metrics.encode_posts.inc(posts)
        metrics.encode_computed.inc(len(done.vectors))
        metrics.encode_reused.inc(posts - len(done.vectors))
        metrics.encode_splits.inc(batch.splits)
        for _, cause in rejected:
            metrics.encode_rejected.labels(cause.reason).inc()
        metrics.encode_tokens.inc(batch.tokens)
        metrics.encode_padded_tokens.inc(batch.padded_tokens)
        metrics.encode_flops.inc(batch.flops)
        metrics.encode_window_tokens.observe(batch.tokens)
        metrics.encode_seconds.observe(batch.encode_s)
        metrics.encode_queue_seconds.observe(done.queued_s)

    def _on_revoke(self) -> None:
        """Partitions go to another member: publish what is under way while its offsets may be committed."""
        try:
            self.finish()
        except Retry as error:
            _log.warning("given up in a rebalance, to be read again: %s", error)
            self._drop()
        self._suspicions.clear()

    def _drop(self) -> None:
        for submitted in self._in_flight:
            submitted.future.cancel()
        self._in_flight.clear()
        self._window = Window()
        self._trial = None
        self._suspicions.clear()
        self._unsure = True

    def _await(self, submitted: Submitted) -> None:
        """Wait until a window is computed, for as long as its batches are."""
        wait_s = 2 * self._settings.stall_timeout_s  # the watchdog ends the process before
        while True:
            batches = self._engine.batches
            try:
                submitted.future.result(wait_s)
            except TimeoutError:
                if self._engine.batches == batches:
                    raise Retry(f"no batch of a window was computed in {wait_s:g} s") from None
            else:
                return


def run(settings: Settings, stop: threading.Event) -> None:
    """Run one encode process until `stop` is set.

    Raises:
        Fatal: it cannot start, or cannot go on.
    """
    topics, metrics, health = begin(settings, "encode", stop)
    health.waits_for = lambda: "it is loading its model"
    encoder = load_encoder(model_of(settings), device=settings.device)
    batch_tokens = settings.batch_tokens or encoder.batch_tokens
    # Here, and not on the engine's thread: see DECISIONS 23 before moving it.
    with ended_after(WARM_UP_TIMEOUT_S, "it has not computed its first batch"):
        fitting = warm_up(encoder, batch_tokens)
        metrics.encode_peak_flops.set(measure_peak(encoder))
    register_gpu(metrics.registry, encoder.device)
    if fitting < batch_tokens:
        _log.warning("batch_tokens=%d does not fit the memory of the device: %d it is", batch_tokens, fitting)
        batch_tokens = fitting
    window_tokens = settings.window_tokens or WINDOW_ROUNDS * encoder.workers * batch_tokens
    with Engine(encoder, batch_tokens) as engine:
        encode = Encode(settings, topics, metrics, engine, window_tokens=window_tokens, stop=stop)
        member = encode.member
        health.waits_for = lambda: member.waits_for
        watch(settings, health, member.positions.copy, beat=lambda: engine.batches)
        try:
            keep_going(encode.step, encode.recover, stop)
            member.commit_last_ends(encode.producer)
        finally:
            stop.set()  # after a failure too: what is left has the time of a stop
            encode.close()
