"""Laws of what the oracle of faults looks at within the pipeline: it sees each way in which stages can disagree."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice

import pytest

from bench.load import MALFORMED, Load
from faults.fault import Fault
from faults.inside import Expected, await_ends, find_problems
from faults.run import FaultError, judge, verify
from schemas.errors import Fatal
from schemas.internal_pb2 import Chunk, Source
from schemas.public_pb2 import CACHED, COMPUTED, Embedding
from streams import clients, clock
from streams.checkpoint import KEY, Progress
from streams.control import create_ray
from streams.rocks_table import RocksTable
from streams.settings import Settings
from streams.submitted import pack_vectors
from streams.table_folder import folder_of
from streams.topics import Topics
from streams.version import version_of
from tests.oracle import remove
from tests.waiting import WAIT_S

pytestmark = pytest.mark.broker

POSTS = 1_500
CHUNKS = 3
TABLE_MIB = 1
"""So the table has a second generation, and has evicted nothing."""
FAULT = Fault("a-fault", 1, lambda run: None)


@dataclass
class Kept:
    """What the stages kept of one partition: all that an oracle is given, and each part can be spoilt."""

    posts: list[bytes | None]
    rejected: list[tuple[int, bytes | None]]
    chunks: list[Source]
    checkpoint: Progress
    embeddings: list[Embedding]
    vectors: dict[bytes, bytes]
    table: dict[bytes, bytes]
    is_at_end: bool = True
    """Whether the table has taken all of the vectors."""

    def write(self, settings: Settings, topics: Topics) -> None:
        """Put it where the stages do."""
        producer = clients.producer(settings)
        (posts,) = topics.posts
        for value in self.posts:
            producer.produce(posts, value)
        another = ("another's", 0, self.posts[0])  # which did not take what this one embedded
        for ray, offset, value in [another, *((topics.ray, *one) for one in self.rejected)]:
            place = {"manyray-topic": posts, "manyray-partition": "0", "manyray-offset": str(offset)}
            headers = {**place, "manyray-ray": ray, "manyray-reason": "malformed", "manyray-detail": ""}
            producer.produce(topics.rejected, value, headers=headers)
        for source in self.chunks:
            producer.produce(topics.lookups, Chunk(version=topics.version, sources=[source]).SerializeToString())
        producer.produce(topics.checkpoints, self.checkpoint.to_bytes(), key=KEY)
        for embedding in self.embeddings:
            producer.produce(topics.embeddings, embedding.SerializeToString(), key=embedding.post_id)
        records = [value for _, value in pack_vectors(self.vectors, topics, 1)]
        for value in records:
            producer.produce(topics.vectors, value)
        assert producer.flush(30) == 0
        with closing(RocksTable(folder_of(settings, topics, 0), settings.table_disk_mib * 2**20)) as table:
            rows = iter(self.table.items())
            while some := dict(islice(rows, 64)):
                table.put_many(some, len(records) if self.is_at_end else 0)


def kept_of(settings: Settings, topics: Topics, load: Load, posts: list[bytes | None]) -> Kept:
    """What a run without faults keeps."""
    (topic,) = topics.posts
    good = {offset: json.loads(value)["id"] for offset, value in enumerate(posts) if is_good(value)}
    expected = Expected.of(settings, topics, load)
    vectors = {fingerprint: vector.astype("<f4").tobytes() for fingerprint, vector in expected.vectors.items()}
    seen: set[bytes] = set()
    embeddings: list[Embedding] = []
    for offset, post_id in good.items():
        content = expected.fingerprints[load.number_of(post_id) or 0]
        embeddings.append(
            Embedding(
                post_id=post_id,
                fingerprint=content,
                vector=vectors[content],
                origin=CACHED if content in seen else COMPUTED,
                source_topic=topic,
                source_offset=offset,
            )
        )
        seen.add(content)
    rejected = [(offset, value) for offset, value in enumerate(posts) if offset not in good]
    chunks = [numbered(sequence) for sequence in range(1, CHUNKS + 1)]
    progress = Progress(CHUNKS, {SOURCE: chunks[-1]})
    return Kept(posts, rejected, chunks, progress, embeddings, vectors, dict(vectors))


def is_good(value: bytes | None) -> bool:
    """Whether a record of the load is a post."""
    return value not in {bad for bad, _ in MALFORMED}


SOURCE = ("posts", 0)


def numbered(sequence: int, epoch_ms: int = 1) -> Source:
    """A chunk's number."""
    return Source(topic=SOURCE[0], partition=SOURCE[1], epoch_ms=epoch_ms, sequence=sequence)


def leave(_: Kept) -> None:
    """As it is."""


def swap_contents(kept: Kept) -> None:
    """Two posts have each other's embedding."""
    one = kept.embeddings[0]
    other = next(two for two in kept.embeddings if two.fingerprint != one.fingerprint)
    one.fingerprint, other.fingerprint = other.fingerprint, one.fingerprint
    one.vector, other.vector = other.vector, one.vector


def swap_posts(kept: Kept) -> None:
    """Two posts' embeddings name each other's place."""
    one, other = kept.embeddings[:2]
    one.source_offset, other.source_offset = other.source_offset, one.source_offset


def lose_an_embedding(kept: Kept) -> None:
    """A post whose content came before comes out nowhere."""
    kept.embeddings.remove(next(one for one in kept.embeddings if one.origin == CACHED))


def double_an_embedding(kept: Kept) -> None:
    """A post comes out twice."""
    kept.embeddings.append(next(one for one in kept.embeddings if one.origin == CACHED))


def compute_nothing(kept: Kept) -> None:
    """A content comes out of a memory that was never committed."""
    first = next(one for one in kept.embeddings if one.origin == COMPUTED)
    first.origin = CACHED


def lose_a_rejected(kept: Kept) -> None:
    """A bad post comes out nowhere."""
    del kept.rejected[0]


def double_a_rejected(kept: Kept) -> None:
    """A bad post is rejected twice."""
    kept.rejected.append(kept.rejected[0])


def change_a_rejected(kept: Kept) -> None:
    """Its bytes are not those that were sent."""
    offset, _ = kept.rejected[0]
    kept.rejected[0] = (offset, b"other bytes")


def reject_the_embedded(kept: Kept) -> None:
    """A post is both embedded and rejected."""
    offset = kept.embeddings[0].source_offset
    kept.rejected.append((offset, kept.posts[offset]))


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


def learn_no_more(kept: Kept) -> None:
    """The table stands where it was."""
    kept.is_at_end = False


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


def run_ahead(kept: Kept) -> None:
    """The checkpoint is behind the end of what there is."""
    kept.checkpoint = Progress(CHUNKS + 1, {SOURCE: kept.chunks[-1]})


def miscount(kept: Kept) -> None:
    """The checkpoint is where it should be, with a number that is not the last one's."""
    kept.checkpoint = Progress(CHUNKS, {SOURCE: kept.chunks[-2]})


SPOILT: dict[Callable[[Kept], None], set[str]] = {
    leave: set(),
    swap_contents: {"2 embeddings are of another content than their post's"},
    swap_posts: {"2 records do not belong to the post that they name"},
    lose_an_embedding: {"1 lost", "came out"},
    double_an_embedding: {"1 doubled"},
    compute_nothing: {"1 contents came out without ever being computed"},
    lose_a_rejected: {"1 lost", "came out"},
    double_a_rejected: {"1 doubled"},
    change_a_rejected: {"1 records do not belong to the post that they name"},
    reject_the_embedded: {"1 contradicted", "1 doubled", "came out"},
    change_a_vector: {"1 embeddings are not those of a run without faults"},
    change_a_kept_vector: {"1 vectors of"},
    lose_a_vector: {"1 vectors are not in"},
    lose_a_row: {"0 vectors are not those of its changelog, 1 are missing"},
    change_a_row: {"1 vectors are not those of its changelog, 0 are missing"},
    learn_no_more: {"the table of partition 0 has not taken the last"},
    lose_a_chunk: {"missing"},
    number_anew: {"were numbered anew"},
    lag_behind: {"the checkpoint of partition 0 is at 2, and its chunks end at 3"},
    miscount: {"the checkpoint of partition 0 is at 3, and its chunks end at 3, or with other numbers"},
    run_ahead: {"the checkpoint of partition 0 is at 4, and its chunks end at 3"},
}


@pytest.fixture
def one(settings: Settings) -> Settings:
    """Settings of one partition, whose topics are there."""
    settings = settings.model_copy(update={"partitions": 1, "table_disk_mib": TABLE_MIB})
    create_ray(settings)
    return settings


@pytest.mark.parametrize(("spoil", "told"), SPOILT.items(), ids=lambda one: getattr(one, "__name__", ""))
def test_the_oracle_tells_what_does_not_agree(one: Settings, spoil: Callable[[Kept], None], told: set[str]) -> None:
    """What is not as it should be is told, and nothing is told of what agrees."""
    topics, load = Topics.of(one, version_of(one)), Load(seed=1)
    kept = kept_of(one, topics, load, list(islice(load.values(), POSTS)))
    spoil(kept)
    kept.write(one, topics)
    problems = judge(FAULT, verify(one.bootstrap_servers, topics), load) + find_problems(one, topics, load)
    assert {part for part in told if any(part in problem for problem in problems)} == told
    assert [problem for problem in problems if not any(part in problem for part in told)] == []


def test_who_may_double_has_to(one: Settings) -> None:
    """At least once, a fault that doubles nothing did not strike."""
    counts = Counter({"embedded": 2, "doubled": 1})
    load = Load(seed=1)
    load.good = 2
    assert judge(replace(FAULT, doubles=True), counts, load) == []
    assert judge(replace(FAULT, doubles=True), Counter({"embedded": 2}), load) != []
    assert judge(FAULT, counts, load) == ["1 doubled"]


def test_a_transaction_that_stays_open_is_told(one: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers of committed records would see nothing behind it, and miss nothing."""
    topics = Topics.of(one, version_of(one))
    producer = clients.producer(one, f"test{clock.random_id()}")
    producer.init_transactions(WAIT_S)
    producer.begin_transaction()
    producer.produce(topics.misses, b"")
    producer.produce(topics.embeddings, b"")
    assert producer.flush(WAIT_S) == 0
    monkeypatch.setattr("faults.inside.ENDED_S_MAX", 1.0)
    with pytest.raises(Fatal, match=f"a transaction on {topics.misses}/0 is still open"):
        await_ends(one, topics)
    with pytest.raises(FaultError, match=f"{topics.embeddings}/0 at offset 0: a transaction is open"):
        verify(one.bootstrap_servers, topics)
    producer.abort_transaction(WAIT_S)
    monkeypatch.undo()
    await_ends(one, topics)


def test_what_retention_has_removed_is_not_passed_over(one: Settings) -> None:
    """The check from outside ends with an error that names the topic, and compares nothing."""
    topics, load = Topics.of(one, version_of(one)), Load(seed=1)
    kept_of(one, topics, load, list(islice(load.values(), POSTS))).write(one, topics)
    remove(one, topics.posts[0], 10)
    with pytest.raises(FaultError, match=f"{topics.posts[0]}/0 has lost its first records"):
        verify(one.bootstrap_servers, topics)
