"""Where a replay begins and ends: what a user says, as offsets of each partition at this moment."""

import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.errors import Fatal, Retry
from streams import clients, clock
from streams.jobs import Range
from streams.settings import Settings
from streams.topics import list_partitions

ASK_S = 30.0
_OFFSETS = re.compile(r"\d+:\d+(,\d+:\d+)*")
_AGO = re.compile(r"(\d{1,9})(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
WAYS = "beginning, now, a time (2026-11-02, 2026-11-02T08:30, 90m, 12h or 7d ago), or offsets (0:1200,1:1180)"


@dataclass(frozen=True, slots=True)
class Bound:
    """One end of a range: an offset by partition, a time, or neither for where the topic begins, or ends now."""

    offsets: Mapping[int, int] | None = None
    time_ms: int | None = None


def parse_bound(text: str, option: str) -> Bound:
    """What `--from` or `--to` says; times without a zone are UTC.

    Raises:
        Fatal: it is none of `WAYS`.
    """
    if text in ("beginning", "now"):
        if text == ("now" if option == "--from" else "beginning"):
            raise Fatal(f"{option} {text} is a range of nothing: leave it out, or name a time or offsets")
        return Bound()
    if _OFFSETS.fullmatch(text):
        pairs = [pair.split(":") for pair in text.split(",")]
        return Bound(offsets={int(partition): int(offset) for partition, offset in pairs})
    if ago := _AGO.fullmatch(text):
        return _since(clock.now_ms() - int(timedelta(**{_UNITS[ago[2]]: int(ago[1])}).total_seconds() * 1000))
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise Fatal(f"{option} {text} is neither of {WAYS}") from None
    return _since(int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000))


def _since(time_ms: int) -> Bound:
    return Bound(time_ms=max(0, time_ms))  # to Kafka, times before 1970 are the ends of a topic


def find_ranges(settings: Settings, topic: str, start: Bound, end: Bound) -> tuple[Range, ...]:
    """The ranges of all partitions of a topic, as they are now; those of nothing are left out.

    Raises:
        Fatal: there is no such topic or partition, or offsets lie outside what it holds.
    """
    count = list_partitions(settings).get(topic)
    if count is None:
        raise Fatal(f"there is no topic {topic}: see `manyray topics list`, or kafka-topics --list")
    for bound in (start, end):
        if unknown := set(bound.offsets or ()) - set(range(count)):
            raise Fatal(f"topic {topic} has partitions 0 to {count - 1}, and no {min(unknown)}: leave it out")
    with closing(clients.reader(settings)) as reader:
        held = {at: clients.watermarks(reader, topic, at) for at in range(count)}
        starts = _resolve(reader, topic, start, {at: low for at, (low, _) in held.items()}, held)
        ends = _resolve(reader, topic, end, {at: high for at, (_, high) in held.items()}, held)
    return tuple(Range(at, starts[at], ends[at]) for at in range(count) if starts[at] < ends[at])


def _resolve(
    reader: Consumer, topic: str, bound: Bound, otherwise: Mapping[int, int], held: Mapping[int, tuple[int, int]]
) -> Mapping[int, int]:
    if bound.offsets is not None:
        for at, offset in bound.offsets.items():
            low, high = held[at]
            if not low <= offset <= high:
                raise Fatal(
                    f"{topic}/{at} holds offsets {low} to {high}, and {offset} is not among them: retention "
                    "removed what was before, and nothing was written after; name others, or `beginning` and `now`"
                )
        # Who names some partitions means these alone.
        return {at: bound.offsets.get(at, held[at][1]) for at in held}
    if bound.time_ms is None:
        return otherwise
    asked = [TopicPartition(topic, at, bound.time_ms) for at in held]
    try:
        found = reader.offsets_for_times(asked, timeout=ASK_S)
    except KafkaException as error:
        raise Retry(f"offsets of {topic} by time: {error.args[0].str()}") from None
    # No record is that late: there the range begins, or ends, at the end.
    return {one.partition: one.offset if one.offset >= 0 else held[one.partition][1] for one in found}
