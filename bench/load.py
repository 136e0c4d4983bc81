"""The load of a fault: posts with repeats and 1 % bad records, equal for equal seeds, published at a steady rate."""

import json
import threading
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from confluent_kafka import KafkaError, Message, Producer

from streams import clients, clock

NEW_SHARE = 0.3
"""Of the posts, how many have a text that was never sent before: these are computed, the others mostly found."""
BAD_EVERY = 100
_AT_ONCE = 1_000
_SAMPLE = Path(__file__).parent.parent / "manyray" / "sample_posts.txt"

MALFORMED: tuple[tuple[bytes | None, str], ...] = (
    (b"{", "malformed"),
    (b'{"id": 1, "text": "x"}', "no_id"),
    (b"\x12\x7f", "malformed"),
    (b'{"id": "x", "text": "\xff"}', "not_utf8"),
    (b'{"id": "", "text": "x"}', "no_id"),
    (b'{"id": "x"}', "no_text"),
    (b'{"id": "' + b"x" * 257 + b'", "text": "x"}', "id_too_long"),
    (b'{"id": "x", "text": "' + b"x" * 70_000 + b'"}', "text_too_long"),
    (b"", "no_value"),
    (None, "no_value"),
)
"""Bad records, and the reason for which each is to be rejected."""


class Load:
    """An endless sequence of posts; so many `texts` were new, records `good` and records `bad` so far.

    What is put into `poison`, by any thread, comes next, and counts as bad; `reasons` counts why they are. Texts have
    at least `text_chars` characters.
    """

    def __init__(self, seed: int, text_chars: int = 0) -> None:
        self._seed, self._text_chars = seed, text_chars
        self._random = np.random.default_rng(seed)
        self._lines = _SAMPLE.read_text(encoding="utf-8").splitlines()
        self.texts = 0
        self.good = 0
        self.bad = 0
        self.reasons: Counter[str] = Counter()
        self.poison: deque[tuple[bytes, str]] = deque()
        self._numbers = array("I")

    def number_of(self, post_id: str) -> int | None:
        """Which text a good post has; None for what is no id of one."""
        begin, _, count = post_id.partition("-")
        if begin != f"p{self._seed}" or not count.isdecimal() or not 0 < int(count) <= len(self._numbers):
            return None
        return self._numbers[int(count) - 1]

    def text(self, number: int) -> str:
        """The text that is new as the `number`-th."""
        return f"{self._lines[number % len(self._lines)]} {self._seed}.{number}".ljust(self._text_chars, ".")

    def values(self) -> Iterator[bytes | None]:
        """The records, one after another."""
        while True:
            new = self._random.random(_AT_ONCE) < NEW_SHARE
            ages = self._random.zipf(1.1, _AT_ONCE)
            for is_new, age in zip(new.tolist(), ages.tolist(), strict=True):
                while self.poison:
                    yield self._spoilt(*self.poison.popleft())
                if (self.good + self.bad) % BAD_EVERY == BAD_EVERY - 1:
                    yield self._spoilt(*MALFORMED[self.bad % len(MALFORMED)])
                    continue
                if is_new or not self.texts:
                    number, self.texts = self.texts, self.texts + 1
                else:
                    number = age % self.texts
                self.good += 1
                self._numbers.append(number)
                yield json.dumps({"id": f"p{self._seed}-{self.good}", "text": self.text(number)}).encode()

    def _spoilt(self, value: bytes | None, reason: str) -> bytes | None:
        self.bad += 1
        self.reasons[reason] += 1
        return value


class Publisher:
    """Publishes a load on a thread of its own, at `rate` records a second, to topics in turn, until told to end."""

    def __init__(self, servers: str, topics: Sequence[str], load: Load, rate: float) -> None:
        self.load = load
        self.sent = 0
        self._topics, self._rate = topics, rate
        self._began_s, self._began_at = clock.monotonic_s(), 0
        self.failure: Exception | None = None
        """What made it end."""
        self._failures: list[str] = []
        self._ending = threading.Event()
        # Idempotent, and patient: what it was told to send is there once, whatever happens to the brokers.
        self._producer = Producer(
            {
                "bootstrap.servers": servers,
                "enable.idempotence": True,
                "linger.ms": 50,  # few requests: the two ends of the pipeline are not what is tried
                "compression.type": "lz4",
                "message.max.bytes": 64 * 2**20,  # of a bomb, before it is compressed
                "message.timeout.ms": 900_000,
                "queue.buffering.max.messages": 1_000_000,
                "log_level": 0,
            }
        )
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def go_on_at(self, rate: float) -> None:
        """Publish so many records a second from now on."""
        self._rate, self._began_s, self._began_at = rate, clock.monotonic_s(), self.sent

    def end(self) -> None:
        """Stop sending, and wait until the brokers have everything.

        Raises:
            RuntimeError: they did not take a record, or not in five minutes.
        """
        self._ending.set()
        self._thread.join()
        left = self._producer.flush(300)
        if left or self._failures:
            raise RuntimeError(f"{left} records of the load not delivered, {self._failures[:1]}")

    def _run(self) -> None:
        values = self.load.values()
        try:
            while not self._ending.is_set():
                if self.sent - self._began_at > (clock.monotonic_s() - self._began_s) * self._rate:
                    self._producer.poll(0.005)
                else:
                    topic = self._topics[self.sent % len(self._topics)]
                    clients.produce(self._producer, topic, next(values), on_delivery=self._delivered)
                    self.sent += 1
        except Exception as error:  # told by whoever waits for what is sent
            self.failure = error

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failures.append(error.str())
