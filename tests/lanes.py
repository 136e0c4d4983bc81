"""A lane as tests run it, and what it is given."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.chunk import ChunkBuilder
from schemas.content import fingerprints_in
from schemas.errors import ManyrayError
from schemas.internal_pb2 import Source, Vectors
from streams.lane import Lane, Record, Shared
from streams.metrics import Metrics
from streams.rocks_table import index_cache
from streams.settings import Settings
from streams.topics import Topics
from tests.tables import key

DIMS = 384
VECTORS_A_RECORD = 64


def vector(number: int) -> bytes:
    """A vector that is no other's, and does not compress."""
    return hashlib.shake_128(number.to_bytes(4, "little")).digest(4 * DIMS)


def record_of(version: str, number: int) -> bytes:
    """The record of `vectors` with that number."""
    numbers = range(number * VECTORS_A_RECORD, (number + 1) * VECTORS_A_RECORD)
    fingerprints, vectors = b"".join(map(key, numbers)), b"".join(map(vector, numbers))
    return Vectors(version=version, dims=DIMS, fingerprints=fingerprints, vectors=vectors).SerializeToString()


@contextmanager
def lane_of(
    settings: Settings, topics: Topics, metrics: Metrics, fatal: list[ManyrayError] | None = None
) -> Iterator[Lane]:
    """The lane of the first partition, working; what is fatal to it is listed, or without a list fails the test."""
    found: list[ManyrayError] = [] if fatal is None else fatal
    lane = Lane(Shared(settings, topics, metrics, index_cache(), found.append), 0)
    try:
        lane.prepare()
        lane.start()
        yield lane
    finally:
        lane.stop()
    assert found == [] or found is fatal


def put(lane: Lane, value: bytes, offset: int, *, is_vectors: bool) -> threading.Event:
    """Hand a record to a lane; the event is set when it is done."""
    done = threading.Event()
    lane.put(Record(value, offset, is_vectors, done.set))
    return done


def lookup(topics: Topics, numbers: range, sequence: int = 1) -> bytes:
    """A chunk of posts whose contents have those vectors."""
    builder, source = ChunkBuilder(), ("posts", 0)
    hash_of = fingerprints_in(topics.version)  # of a fingerprint, as of a hash: to do it twice is to undo it
    for number in numbers:
        content = builder.add_content(hash_of(key(number)), str(number).encode())
        builder.add_post(str(number), content, source, number, 0)
    sources = [Source(topic="posts", partition=0, epoch_ms=1, sequence=sequence)]
    return builder.build("", sources).SerializeToString()
