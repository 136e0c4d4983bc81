"""Laws of what the oracle of faults looks at within the pipeline: it sees each way in which stages can disagree."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import pytest

from faults.inside import Expected, find_problems
from faults.load import Load
from schemas.internal_pb2 import Chunk, Source
from schemas.public_pb2 import COMPUTED, Embedding
from streams import clients
from streams.checkpoint import KEY, Progress
from streams.rocks_table import RocksTable
from streams.settings import Settings
from streams.submitted import pack_vectors
from streams.topics import Topics, create_topics
from streams.version import version_of

pytestmark = pytest.mark.broker

POSTS = 30
CHUNKS = 3
SOURCE = ("posts", 0)


@dataclass
class Kept:
    """What the stages kept of one partition: all that an oracle is given, and each part can be spoilt."""

    chunks: list[Source]
    checkpoint: Progress
    embeddings: list[Embedding]
    vectors: dict[bytes, bytes]
    table: dict[bytes, bytes]

    def write(self, settings: Settings, topics: Topics) -> None:
        """Put it where the stages do."""
        producer = clients.producer(settings)
        for source in self.chunks:
            producer.produce(topics.lookups, Chunk(version=topics.version, sources=[source]).SerializeToString())
        producer.produce(topics.checkpoints, self.checkpoint.to_bytes(), key=KEY)
        for embedding in self.embeddings:
            producer.produce(topics.embeddings, embedding.SerializeToString(), key=embedding.post_id)
        for _, value in pack_vectors(self.vectors, topics.version, 1):
            producer.produce(topics.vectors, value)
        assert producer.flush(30) == 0
        folder = settings.data_dir / "tables" / f"{topics.ray}-{topics.version}" / "0"
        with closing(RocksTable(folder, settings.table_disk_mib * 2**20)) as table:
            table.put_many(self.table, 1)


def kept_of(settings: Settings, topics: Topics, load: Load) -> Kept:
    """What a run without faults keeps."""
    expected = Expected.of(settings, topics, load)
    vectors = {fingerprint: vector.astype("<f4").tobytes() for fingerprint, vector in expected.vectors.items()}
    ids = [f"p1-{number}" for number in range(1, load.good + 1)]
    contents = [expected.fingerprints[load.number_of(post_id) or 0] for post_id in ids]
    embeddings = [
        Embedding(post_id=post_id, fingerprint=content, vector=vectors[content], origin=COMPUTED)
        for post_id, content in zip(ids, contents, strict=True)
    ]
    chunks = [numbered(sequence) for sequence in range(1, CHUNKS + 1)]
    return Kept(chunks, Progress(CHUNKS, {SOURCE: chunks[-1]}), embeddings, vectors, dict(vectors))


def numbered(sequence: int, epoch_ms: int = 1) -> Source:
    """A chunk's number."""
    return Source(topic=SOURCE[0], partition=SOURCE[1], epoch_ms=epoch_ms, sequence=sequence)


def leave(_: Kept) -> None:
    """As it is."""


def swap_contents(kept: Kept) -> None:
    """Two posts have each other's embedding."""
    one = kept.embeddings[0]
    other = next(two for two in kept.embeddings if two.fingerprint != one.fingerprint)
    one.post_id, other.post_id = other.post_id, one.post_id


def change_a_vector(kept: Kept) -> None:
    """A subscriber was sent another vector."""
    kept.embeddings[0].vector = bytes(len(kept.embeddings[0].vector))


def change_a_kept_vector(kept: Kept) -> None:
    """The changelog, and with it the table, has another vector."""
    first = next(iter(kept.vectors))
    kept.vectors[first] = kept.table[first] = bytes(len(kept.vectors[first]))


def lose_a_vector(kept: Kept) -> None:
    """A vector that was computed is nowhere."""
    first = next(iter(kept.vectors))
    del kept.vectors[first], kept.table[first]


def lose_a_row(kept: Kept) -> None:
    """The table says that it is further than it is."""
    del kept.table[next(iter(kept.table))]


def change_a_row(kept: Kept) -> None:
    """The table has another vector than its changelog."""
    first = next(iter(kept.table))
    kept.table[first] = bytes(len(kept.table[first]))


def lose_a_chunk(kept: Kept) -> None:
    """A number is left out."""
    del kept.chunks[1]


def number_anew(kept: Kept) -> None:
    """Ingest forgot its numbers, and began again."""
    kept.chunks.append(numbered(1, epoch_ms=2))
    kept.checkpoint = Progress(CHUNKS + 1, {SOURCE: kept.chunks[-1]})


def lag_behind(kept: Kept) -> None:
    """The checkpoint was not written with the last chunk."""
    kept.checkpoint = Progress(CHUNKS - 1, {SOURCE: kept.chunks[-2]})


SPOILT: dict[Callable[[Kept], None], str] = {
    leave: "",
    swap_contents: "2 embeddings are of another content than their post's",
    change_a_vector: "1 embeddings are not those of a run without faults",
    change_a_kept_vector: "1 vectors of",
    lose_a_vector: "1 vectors are not in",
    lose_a_row: "0 vectors are not those of its changelog, 1 are missing",
    change_a_row: "1 vectors are not those of its changelog, 0 are missing",
    lose_a_chunk: "missing",
    number_anew: "were numbered anew",
    lag_behind: "the checkpoint of partition 0 is at 2, and its chunks end at 3",
}


@pytest.mark.parametrize(("spoil", "told"), SPOILT.items(), ids=lambda one: getattr(one, "__name__", ""))
def test_the_oracle_tells_what_does_not_agree(settings: Settings, spoil: Callable[[Kept], None], told: str) -> None:
    """One thing that is not as it should be is told in one line, and nothing is told of what agrees."""
    settings = settings.model_copy(update={"partitions": 1})
    version = version_of(settings)
    create_topics(settings, version)
    topics = Topics.of(settings, version)
    load = Load(seed=1)
    assert len(list(islice(load.values(), POSTS))) == POSTS
    kept = kept_of(settings, topics, load)
    spoil(kept)
    kept.write(settings, topics)
    problems = find_problems(settings, topics, load, tables=True)
    assert len(problems) == bool(told)
    assert all(told in problem for problem in problems)
