"""The watchdog on a role's progress: a thread that ends the process where records wait and none is taken.

It asks the brokers itself what waits, as a client that stalls knows of nothing new.
"""

import logging
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from typing import NoReturn

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.chunk import Place
from schemas.errors import Retry
from streams import clients, clock
from streams.ending import end_process
from streams.health import JOINING, Health
from streams.settings import Settings
from streams.stall import Stalls

_log = logging.getLogger("manyray.watchdog")

ASK_TIMEOUT_S = 5.0
"""For one answer of the brokers; where none comes nothing is known, and nothing is a stall."""
ROUND_S_MAX = 10.0
"""For asking about all places, but for the last answer. What could not be read is asked last, and left out after it."""
JOIN_TIMEOUT_S = 120.0
"""For joining a group while the brokers answer: a rebalance takes 60 s at most, after a session of 6 s."""
TELL_S = 1.0
"""Between what `/live` says and the end, so that it can be heard."""


class Waiting:
    """How many records wait at places, as the brokers say now. For one thread."""

    def __init__(self, reader: Consumer) -> None:
        """`reader` is of `clients.reader`, and this one's alone."""
        self._reader = reader
        self._before: dict[Place, int] = {}
        self._empty_to: dict[Place, int] = {}
        self._unread: dict[Place, None] = {}
        """Places that could not be read when they were asked last, the longest ago first."""

    def ask(self, processed: Mapping[Place, int]) -> dict[Place, int]:
        """The records that wait at each place, given the next offset to be processed there.

        A place that has moved since the last call counts as one where nothing waits: so brokers are asked about idle
        and stalled ones only. One that cannot be read is left out.

        Raises:
            Retry: the brokers did not answer.
        """
        before, self._before = self._before, dict(processed)
        waiting = {place: 0 for place, offset in processed.items() if before.get(place) != offset}
        last = {place: number for number, place in enumerate(self._unread, 1)}
        is_answered = False
        deadline_s = clock.monotonic_s() + ROUND_S_MAX
        for place in sorted(processed.keys() - waiting.keys(), key=lambda place: last.get(place, 0)):
            self._unread.pop(place, None)
            try:
                waiting[place] = self._at(place, processed[place])
            except Retry as error:
                self._unread[place] = None
                is_answered = is_answered or self.is_answered()
                if not is_answered:
                    raise Retry(str(error)) from None
                _log.debug("what waits in %s/%d is not known: %s", *place, error)
            if clock.monotonic_s() > deadline_s:
                break
        return waiting

    def is_answered(self) -> bool:
        """Whether the brokers answer."""
        try:
            self._reader.list_topics(timeout=ASK_TIMEOUT_S)
        except KafkaException:
            return False
        return True

    def _at(self, place: Place, processed: int) -> int:
        low, end = clients.watermarks(self._reader, *place, timeout_s=ASK_TIMEOUT_S)
        start = max(low, processed)
        if end <= max(start, self._empty_to.get(place, 0)):
            return 0
        # Offsets there are, but a transaction's end has one too: only reading tells whether there is a record.
        first, is_record = clients.first_from(self._reader, TopicPartition(*place, start), timeout_s=ASK_TIMEOUT_S)
        if is_record:
            return max(1, end - first)
        self._empty_to[place] = first
        return 0


def end_stalled(reason: str) -> NoReturn:
    """End this process: the next one reads again what was in hand."""
    end_process(f"{reason}: ended, to be started again")


@contextmanager
def ended_after(limit_s: float, what: str) -> Generator[None]:
    """End the process if the block takes longer, which may wait in C; `what` says what it is, as "it has not begun"."""
    timer = threading.Timer(limit_s, end_stalled, [f"{what} in {limit_s:.0f} s"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def watch(
    settings: Settings,
    health: Health,
    processed: Callable[[], Mapping[Place, int]],
    *,
    beat: Callable[[], int] = lambda: 0,
    end: Callable[[str], object] = end_stalled,
    join_timeout_s: float = JOIN_TIMEOUT_S,
) -> threading.Thread:
    """Watch from now on, on a daemon thread, until `health.stop` is set; `end` is called with the reason of a stall.

    `processed` is asked for the next offset to be processed of each partition owned; `beat` for a number that changes
    while the process works at something that is part of none of them. Both are called on the watchdog's thread.
    """

    def look() -> None:
        stalls, joining = Stalls(settings.stall_timeout_s), Stalls(join_timeout_s)
        # A record tells all that is asked, so nothing is fetched ahead: a broker gives at least one.
        with closing(clients.reader(settings, fetch_message_max_bytes=1, queued_min_messages=1)) as reader:
            waiting = Waiting(reader)
            while not health.stop.wait(min(stalls.every_s, joining.every_s)):
                offsets = processed()
                try:
                    seen = {
                        f"{topic}/{number}": (offsets[topic, number], count)
                        for (topic, number), count in waiting.ask(offsets).items()
                    }
                except Retry as error:
                    _log.debug("what waits is not known: %s", error)
                    seen = {}
                stalled = stalls.judge(clock.monotonic_s(), seen, beat())
                health.stalled = str(stalled) if stalled else ""
                is_joining = health.waits_for() == JOINING and waiting.is_answered()
                if joining.judge(clock.monotonic_s(), {JOINING: (0, 1)} if is_joining else {}):
                    health.stalled = f"it has not joined its group in {join_timeout_s:.0f} s"
                if health.stalled and not health.stop.wait(TELL_S):
                    end(health.stalled)

    def run() -> None:
        try:
            look()
        except Exception as error:  # nobody would see the next stall
            end(f"its watchdog failed ({type(error).__name__}: {error})")

    thread = threading.Thread(target=run, name="watchdog", daemon=True)
    thread.start()
    return thread
