"""Encode of one version: misses in, embeddings and vectors out, both in one transaction with the misses' offsets.

One thread owns all Kafka clients. It gathers windows, and while the engine computes some, gathers and publishes others.
Misses come in two lanes, live and backfill; a window is of one of them, and live ones are computed first.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import replace
from itertools import chain

from confluent_kafka import TopicPartition

from encoders.encoder import EncodedBatch
from encoders.engine import Engine
from schemas.chunk import Place, parse_chunk, part_of
from schemas.content import split_fingerprints
from schemas.embedding import EmbeddingParts
from schemas.errors import Reject, Retry
from schemas.internal_pb2 import Chunk
from streams import clock
from streams.attempts import with_retries
from streams.failpoints import reach
from streams.group import Member
from streams.metrics import Metrics
from streams.miss_lane import MissLane
from streams.recent import RecentVectors
from streams.rejected import Original, read_back, send_rejected
from streams.settings import Settings
from streams.submitted import DETAILS, Submitted, pack_forgotten, pack_vectors, standing_of, tombstones
from streams.suspect import KILLS_ENCODER, Suspicion
from streams.suspicions import Suspicions
from streams.topics import Topics
from streams.transactions import VECTOR_BYTES_MAX, StageProducer
from streams.unembedded import Unembedded
from streams.window import Window

_log = logging.getLogger("manyray.encode")

_IDLE_WAIT_S = 0.1
_BUSY_WAIT_S = 0.005


class Encode:
    """One encode process: a lane of live misses and one of a backfill's, an engine, and a producer."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        metrics: Metrics,
        engine: Engine,
        is_shadow: Callable[[], bool] = lambda: False,
        *,
        stop: threading.Event,
    ) -> None:
        """Open the producer, then become a member of both lanes' groups.

        `is_shadow` says whether nobody waits for what comes out: others are computed before it.

        Raises:
            Retry: `stop` was set before the brokers answered.
            Fatal: they did not answer.
        """
        self._settings, self._topics, self._metrics, self._engine = settings, topics, metrics, engine
        self._is_shadow = is_shadow
        self._wait_s = settings.encode_wait_ms / 1000
        vector_bytes = max(1, engine.encoder.dims * topics.form.bits // 8)
        self._posts_max = max(1, min(settings.transaction_posts_max, VECTOR_BYTES_MAX // vector_bytes))
        self._parts = EmbeddingParts(topics.ray, topics.version, topics.form)
        for reason in DETAILS:  # a series that begins at its first rejection has not grown, and alerts nobody
            metrics.encode_rejected.labels(reason)
        self._recent = RecentVectors(settings.recent_vectors_mib * 2**20)
        self._unsure = False
        """What was read is dropped, or perhaps published: nothing more is, until it is read again."""
        self._trial: Iterator[bool] | None = None
        self._is_flowing = False
        """Whether there was something to read the last time."""
        self._unembedded = Unembedded(settings.model)
        self.producer = StageProducer.create(
            settings, f"{topics.encode_group}.{clock.random_id()}", metrics, stop, shared_id=False
        )
        with_retries(self.producer.open, stop)
        live = self._join(topics.encode_group, topics.misses, is_urgent=True)
        self.lanes = (live, self._join(topics.backfill_group, topics.backfill_misses, is_urgent=False))
        """The most urgent first."""
        metrics.encode_batch_tokens.set_function(lambda: engine.batch_tokens)
        metrics.queue_length.labels("windows").set_function(lambda: sum(len(lane.in_flight) for lane in self.lanes))
        metrics.queue_length.labels("window_posts").set_function(lambda: sum(lane.window.posts for lane in self.lanes))

    def positions(self) -> dict[Place, int]:
        """The next offset to process of each partition owned. Any thread may ask."""
        return dict(chain.from_iterable(lane.member.positions.copy().items() for lane in self.lanes))

    def waits_for(self) -> str:
        """Why it does not read all that it owns now; empty when it does. Any thread may ask."""
        return next(filter(None, (lane.member.waits_for for lane in self.lanes)), "")

    def step(self) -> bool:
        """Do the most urgent thing: publish what is computed, else submit what is due, else read.

        Returns whether something was committed.

        Raises:
            Retry: something was not committed, or that is unknown: `recover`.
            Fatal: this process has to end.
        """
        if self._unsure:
            raise Retry("windows were dropped in a rebalance")
        for lane in self.lanes:
            lane.member.report_lag()
        if self._trial is not None:
            if next(self._trial, False):
                return True
            self._trial = None
        # In turn: or many little windows of one lane would leave the other's computed and the device idle.
        for lane in sorted(self.lanes, key=lambda lane: lane.published_s):
            if lane.is_computed:
                self._publish_first(lane)
                return True
        now_s = clock.monotonic_s()
        for lane in self.lanes:
            if (self._is_full(lane) or lane.window.is_old(now_s, self._wait_s)) and lane.may_begin():
                self._begin(lane)
                return False
        self._read()
        return False

    def recover(self) -> None:
        """After a Retry: drop what is under way, end the transaction, read again from what was committed."""
        for lane in self.lanes:
            lane.member.waits_for = "it goes back to what is committed"
        self._drop()
        self.producer.open()
        for lane in self.lanes:
            lane.member.rewind()
        self._unsure = False

    def finish(self) -> None:
        """Publish everything that is under way, unless something before it was dropped, or may be there already."""
        for lane in self.lanes:
            self._finish(lane)

    def commit_last_ends(self) -> None:
        """At a stop: see `Member.commit_last_ends`."""
        for lane in self.lanes:
            lane.member.commit_last_ends(self.producer)

    def close(self) -> None:
        """Leave the groups; what is under way is published first, if it can be."""
        for lane in self.lanes:
            lane.member.close()
        self.producer.close()

    def _join(self, group: str, topic: str, *, is_urgent: bool) -> MissLane:
        member = Member.join(
            self._settings,
            group,
            [topic],
            self._metrics,
            on_revoke=lambda: self._on_revoke(lane),
            on_lost=self._on_lost,
            name=f"version {self._topics.version}",
        )
        lane = MissLane(member, Suspicions(member, self.producer), is_urgent)
        return lane

    def _is_full(self, lane: MissLane) -> bool:
        return lane.window.is_full(self._settings.window_tokens or self._engine.window_tokens, self._posts_max)

    def _read(self) -> None:
        """Read a chunk of each lane that has room; wait for one, or for a window, where none has come."""
        open_lanes = [lane for lane in self.lanes if not self._is_full(lane)]
        if not open_lanes:
            wait([lane.in_flight[0].future for lane in self.lanes if lane.in_flight], _IDLE_WAIT_S, FIRST_COMPLETED)
            return
        is_busy = any(lane.in_flight or lane.window.chunks for lane in self.lanes)
        wait_s = 0.0 if self._is_flowing else min(self._wait_s, _BUSY_WAIT_S) if is_busy else _IDLE_WAIT_S
        self._is_flowing = False
        for lane in open_lanes:
            lane.member.commit_ends(self.producer)
            self._read_lane(lane, wait_s)
            if self._unsure or self._trial is not None:
                return
            wait_s = 0.0  # of one lane only

    def _read_lane(self, lane: MissLane, wait_s: float) -> None:
        """Read a chunk into the window, or begin with trying its contents."""
        for message in lane.member.read(1, wait_s):
            if self._unsure:  # in a rebalance, within this very call: what came after it is read again too
                return
            self._is_flowing = True
            place = (message.topic() or "", message.partition() or 0)
            where = f"{place[0]}/{place[1]} offset {message.offset()}"
            chunk = parse_chunk(message.value(), where, accept_gaps=self._settings.accept_gaps)
            offset = message.offset() or 0
            suspicion = lane.suspicions.at(place, offset)
            if suspicion is None or not suspicion.is_suspect:
                lane.window.add(chunk, place, offset, clock.monotonic_s())
            else:
                self._trial = self._try(lane, chunk, place, offset, suspicion)

    def _begin(self, lane: MissLane) -> None:
        lane.suspicions.begin(lane.window)
        lane.in_flight.append(self._submit(lane, lane.take()))

    def _finish(self, lane: MissLane) -> None:
        while (lane.in_flight or lane.window.chunks) and not self._unsure:
            if not lane.in_flight:
                self._begin(lane)
            self._await(lane.in_flight[0])
            self._publish_first(lane)

    def _try(self, lane: MissLane, chunk: Chunk, place: Place, offset: int, suspicion: Suspicion) -> Iterator[bool]:
        """Compute and publish a suspect chunk alone; if it killed, what is left of it, a content a step.

        Between two steps nothing is open, so that neither a stop nor a failed transaction counts as a death.
        """
        self.finish()  # what came before is none of it, nor is what another lane has under way
        if not (suspicion.is_careful and chunk.texts):  # without texts there is nothing to be computed
            lane.window.add(chunk, place, offset, clock.monotonic_s())
            self._finish(lane)
            yield True
            return
        fingerprints = split_fingerprints(chunk.fingerprints)
        for content in range(suspicion.content, len(fingerprints)):
            part = Window()
            part.add(part_of(chunk, content), place, offset, clock.monotonic_s())
            if suspicion.is_found:
                done = self._submit(lane, part, {fingerprints[content]: KILLS_ENCODER})
            else:
                lane.suspicions.mark({place: (offset, suspicion.tried(lane.suspicions.me))})
                done = self._submit(lane, part)
                self._await(done)
                lane.suspicions.mark({place: (offset, suspicion)})
            suspicion = suspicion.after_content()
            if content + 1 < len(fingerprints):
                part.next_offsets[place] = offset
                self._publish(lane, done, {place: suspicion})
            else:
                self._publish(lane, done, lane.suspicions.after(part))
            yield True

    def _submit(self, lane: MissLane, window: Window, refused: Mapping[bytes, str] | None = None) -> Submitted:
        """Give the engine what is to be computed of a window; `refused` are contents that are not, and why."""
        failed = dict(refused or {})
        known: dict[bytes, bytes] = {}
        lent: dict[bytes, Submitted] = {}
        for fingerprint in window.texts:
            vector = self._recent.get(fingerprint)
            if vector is not None:
                known[fingerprint] = vector
            elif lender := next((earlier for earlier in lane.in_flight if fingerprint in earlier.window.texts), None):
                lent[fingerprint] = lender
        computing = [
            fingerprint
            for fingerprint in window.texts
            if fingerprint not in known and fingerprint not in lent and fingerprint not in failed
        ]
        texts = [window.texts[fingerprint].decode() for fingerprint in computing]
        future = self._engine.submit(texts, lane.is_urgent and not self._is_shadow())
        reach("encode.computing")
        queued_s = clock.monotonic_s() - window.first_s
        return Submitted(window, computing, future, known, lent, queued_s, failed=failed)

    def _publish_first(self, lane: MissLane) -> None:
        done = lane.in_flight[0]
        self._unsure = True  # whatever ends this, until it is forgotten it may be there already
        self._publish(lane, done, lane.suspicions.after(done.window))
        lane.in_flight.popleft()
        lane.published(done.window, done.future.result().encode_s, self._settings.stall_timeout_s / 2)
        self._unsure = False

    def _publish(self, lane: MissLane, done: Submitted, left: Mapping[Place, Suspicion | None]) -> None:
        """One transaction: embeddings of all posts of a window, or why they have none; its new vectors; its offsets.

        `left` is what stays to be known of what comes next in its partitions.
        """
        batch = done.future.result()
        done.settle(batch, self._topics.form)
        self._unembedded.note(done)
        rejected = self._rejected(done)
        self.producer.begin()
        for original, cause in rejected:
            send_rejected(self.producer, self._topics, original, cause)
        for chunk, records in done.outputs(self._parts, clock.now_ms()):
            outputs = self._topics.outputs(standing_of(chunk))
            self.producer.produce_keyed(records, *outputs)
            for key, headers in tombstones(chunk):
                for topic in outputs:
                    self.producer.produce(topic, None, key=key, headers=headers)
        partitions, chunks = self._settings.partitions, done.window.chunks
        learned = pack_vectors(done.vectors, self._topics, partitions)
        for partition, value in learned + pack_forgotten(chunks, self._topics, partitions):
            self.producer.produce(self._topics.vectors, value, partition=partition)
        reach("encode.sent")
        forgotten = {each for chunk in chunks for each in split_fingerprints(chunk.forgotten)}
        for fingerprint in forgotten:  # first: whether it is committed may stay unknown
            self._recent.drop(fingerprint)
        self.producer.commit(
            [
                TopicPartition(*place, offset, metadata=str(left[place] or ""))
                for place, offset in done.window.next_offsets.items()
            ],
            lane.member.consumer,
        )
        for fingerprint, vector in done.vectors.items():
            if fingerprint not in forgotten:
                self._recent.put(fingerprint, vector)
        lane.suspicions.committed(left)
        lane.member.processed(done.window.next_offsets)
        self._observe(done, batch, rejected)

    def _rejected(self, done: Submitted) -> list[tuple[Original, Reject]]:
        """The posts of a window that get no embedding, as they were written."""
        unembedded = list(done.unembedded())
        originals = read_back(self._settings, [rebuilt for rebuilt, _ in unembedded])
        return [(replace(originals[rebuilt.place], job=rebuilt.job), cause) for rebuilt, cause in unembedded]

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

    def _on_revoke(self, lane: MissLane) -> None:
        """Partitions go to another member: publish what is under way while its offsets may be committed."""
        try:
            self._finish(lane)
        except Retry as error:
            _log.warning("given up in a rebalance, to be read again: %s", error)
            self._drop()
        self._recent.clear()  # what is to be forgotten is told to the next owner alone
        lane.suspicions.clear()

    def _on_lost(self) -> None:
        self._drop()
        self._recent.clear()

    def _drop(self) -> None:
        for lane in self.lanes:
            lane.drop()
        self._trial = None
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
