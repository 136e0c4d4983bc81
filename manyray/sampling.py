"""A sample of what a replay would read: stretches of its ranges, and what the records there are."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from manyray.replaying import source_of
from schemas.content import hasher
from streams import clock
from streams.filtering import compile_filter
from streams.ingest import sort_posts
from streams.jobs import Job, Range
from streams.packing import Packer
from streams.ranges import Read
from streams.settings import Settings

SAMPLE_OFFSETS = 20_000
"""Read in all."""
STRETCHES = 10
"""Of each partition, evenly spaced."""
TEXTS_MAX = 1_024
TEXT_BYTES_MAX = 4 * 2**20
_READ_AT_ONCE = 1_000
_IDLE_S = 10.0
"""Without a record where there were to be offsets."""


@dataclass(slots=True)
class Seen:
    """What the records of a sample are.

    offsets: read. post_bytes: of chunks of them. contents: how many posts have each, by its hash.
    """

    offsets: int = 0

    posts: int = 0
    rejected: int = 0
    tombstones: int = 0
    filtered: int = 0
    post_bytes: int = 0
    contents: Counter[bytes] = field(default_factory=Counter[bytes])
    texts: list[str] = field(default_factory=list[str])
    text_bytes: int = 0


def spread(ranges: tuple[Range, ...], offsets_max: int) -> tuple[Range, ...]:
    """Parts of ranges, evenly spaced: all of them if they have few offsets, or about so many, some of each range."""
    total = sum(each.end - each.start for each in ranges)
    if total <= offsets_max:
        return ranges
    parts: list[Range] = []
    for each in ranges:
        length = each.end - each.start
        size = max(1, round(length * offsets_max / total / STRETCHES))
        starts = np.linspace(each.start, each.end - size, min(STRETCHES, length // size), dtype=np.int64).tolist()
        parts += [Range(each.partition, start, start + size) for start in starts]
    return tuple(parts)


def read_sample(settings: Settings, job: Job, stretches: Sequence[Range]) -> Seen:
    """Read stretches of a job's ranges as the job would, and send nothing.

    Raises:
        Retry: the brokers did not answer in time.
        Fatal: as `Ranges.read`.
    """
    seen = Seen(sum(each.end - each.start for each in stretches))
    is_wanted = compile_filter(job.filter) if job.filter else None
    packer = Packer(hasher(settings.salt.get_secret_value()), settings.partitions, settings.chunk_posts_max)
    for read in _reads(settings, job, stretches):
        kept = [message for message in read.records if is_wanted(message)] if is_wanted else read.records
        batch = sort_posts(kept, {job.topic: packer}, settings.text_bytes_max)
        seen.posts += len(kept) - len(batch.rejected) - batch.deletions
        seen.rejected += len(batch.rejected)
        seen.tombstones += batch.deletions
        seen.filtered += len(read.records) - len(kept)
        for _, builder in batch.chunks:
            hashes = list(builder.fingerprints)
            seen.post_bytes += builder.size_bytes
            for text, each in zip(builder.texts, hashes, strict=True):
                is_room = len(seen.texts) < TEXTS_MAX and seen.text_bytes < TEXT_BYTES_MAX
                if each not in seen.contents and is_room:
                    seen.texts.append(text.decode())
                    seen.text_bytes += len(text)
                seen.contents[each] += 0
            seen.contents.update(hashes[content] for content in builder.contents)
    return seen


def _reads(settings: Settings, job: Job, stretches: Sequence[Range]) -> Iterator[Read]:
    """All of the stretches: those of a topic layer by layer, one of each partition at a time."""
    by_partition: dict[int, list[Range]] = {}
    for each in stretches:
        by_partition.setdefault(each.partition, []).append(each)
    layers = [stretches]
    if job.files is None:
        deepest = max(map(len, by_partition.values()))
        layers = [tuple(its[at] for its in by_partition.values() if at < len(its)) for at in range(deepest)]
    for layer in layers:
        with closing(source_of(settings, job, layer)) as source:
            at: dict[int, int] = {}
            for each in layer:
                at.setdefault(each.partition, each.start)
            source.go_to(at)
            ends = {each.partition: each.end for each in layer}
            deadline_s = clock.monotonic_s() + _IDLE_S
            while any(at[partition] < end for partition, end in ends.items()) and clock.monotonic_s() < deadline_s:
                read = source.read(_READ_AT_ONCE)
                if read.next_offsets != at:
                    deadline_s = clock.monotonic_s() + _IDLE_S
                at = read.next_offsets
                yield read
