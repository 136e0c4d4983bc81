"""The subscriber that runs through a fault: what it sees, how often, and for how long nothing came."""

import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, Message, TopicPartition

from schemas.chunk import Place
from schemas.content import partition_of
from schemas.public_pb2 import COMPUTED, Embedding
from streams import clock

Flow = tuple[str, int]
"""Where posts come from and go through: a partition of their topic; of the contents, once for those that were there,
in a table or an encoder, once for those that are computed. Each can stand still while the others go on."""


class Live:
    """Reads committed embeddings and rejected posts on a thread of its own, as they come.

    Seen posts are counted by their place: `counts[topic, partition][offset]`.
    """

    def __init__(self, servers: str, posts: Sequence[str], embeddings: str, rejected: str, partitions: int) -> None:
        self.embedded = 0
        self.rejected = 0
        self.doubled = 0
        self.first_doubled = ""
        """Its place, and the time it was seen, by this machine's clock."""
        self.ahead_s = 0.0
        """By how much the clock of who made the last embedding is ahead of this one."""
        self._posts, self._embeddings, self._rejected, self._partitions = posts, embeddings, rejected, partitions
        self.reasons: Counter[str] = Counter()
        """Rejected posts by reason, each once."""
        self._counts: dict[Place, npt.NDArray[np.uint8]] = {}
        self._lock = threading.Lock()
        self._last_s: dict[Flow, float] = {}
        self._newest_ms: dict[Flow, int] = {}
        self._longest_s: dict[Flow, float] = {}
        self._ending = threading.Event()
        self.failure: Exception | None = None
        self._consumer = Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": "live",  # asked for by librdkafka; nothing is committed
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.min.bytes": 100_000,  # few requests: see Publisher
                "fetch.wait.max.ms": 100,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )
        topics = self._consumer.list_topics(timeout=30).topics
        self._flows: list[Flow] = [(topic, at) for topic in posts for at in topics[topic].partitions]
        self._flows += [(origin, at) for at in range(partitions) for origin in ("cached", "computed")]
        places = [TopicPartition(name, at, 0) for name in (embeddings, rejected) for at in topics[name].partitions]
        self._consumer.assign(places)
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self._thread.start()

    @property
    def seen(self) -> int:
        """Distinct posts seen, embedded or rejected."""
        return self.embedded + self.rejected

    def watch(self) -> None:
        """From now on, note how long each flow is silent."""
        with self._lock:
            now_s = clock.monotonic_s()
            self._last_s = dict.fromkeys(self._flows, now_s)
            self._newest_ms = dict.fromkeys(self._flows, 0)
            self._longest_s = dict.fromkeys(self._flows, 0.0)

    def newest_ms(self) -> int:
        """The time until which every flow has brought posts, by the clock of those who published them."""
        with self._lock:
            return min(self._newest_ms.values())

    def silent_s(self) -> float:
        """The longest that any flow was silent since `watch`."""
        with self._lock:
            now_s = clock.monotonic_s()
            return max(max(self._longest_s[flow], now_s - last_s) for flow, last_s in self._last_s.items())

    def note_end(self) -> float:
        """`silent_s` as it is now; from now on nothing has to flow."""
        silent_s = self.silent_s()
        with self._lock:
            self._last_s = {}
        return silent_s

    def close(self) -> None:
        """Stop reading."""
        self._ending.set()
        self._thread.join()
        self._consumer.close()

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self._take(self._consumer.consume(1_000, 0.1))
        except Exception as error:  # told by whoever waits for what is seen
            self.failure = error

    def _take(self, messages: Sequence[Message]) -> None:
        newest_ms: dict[Flow, int] = {}
        for message in messages:
            if message.error() is not None:
                continue  # brokers come and go in a fault
            if message.topic() == self._embeddings:
                embedding = Embedding.FromString(message.value() or b"")
                if embedding.job:
                    continue
                source = (embedding.source_topic, embedding.source_partition)
                origin = "computed" if embedding.origin == COMPUTED else "cached"
                through = (origin, partition_of(embedding.fingerprint, self._partitions))
                for flow in (source, through):
                    newest_ms[flow] = max(newest_ms.get(flow, 0), embedding.posted_ms)
                self.embedded += self._count(source, embedding.source_offset)
                self.ahead_s = (embedding.embedded_ms - clock.now_ms()) / 1000
            else:
                headers = {name: value for name, value in message.headers() or [] if isinstance(value, bytes)}
                source = (headers["manyray-topic"].decode(), int(headers["manyray-partition"]))
                if source[0] in self._posts and self._count(source, int(headers["manyray-offset"])):
                    self.rejected += 1
                    self.reasons[headers["manyray-reason"].decode()] += 1
        with self._lock:
            now_s = clock.monotonic_s()
            for flow in newest_ms.keys() & self._last_s.keys():
                self._newest_ms[flow] = max(self._newest_ms[flow], newest_ms[flow])
                self._longest_s[flow] = max(self._longest_s[flow], now_s - self._last_s[flow])
                self._last_s[flow] = now_s

    def _count(self, source: Place, offset: int) -> bool:
        """Count a post; says whether it is the first time."""
        counts = self._counts.get(source)
        if counts is None or offset >= len(counts):
            grown = np.zeros(max(65_536, 2 * offset), np.uint8)
            if counts is not None:
                grown[: len(counts)] = counts
            counts = self._counts[source] = grown
        counts[offset] += 1
        if counts[offset] == 2:
            self.doubled += 1
            place = f"{source[0]}/{source[1]} offset {offset}, {clock.now_ms()} ms"
            self.first_doubled = self.first_doubled or place
        return bool(counts[offset] == 1)
