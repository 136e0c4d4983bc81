"""Laws of the decision of dedup."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.content import split_fingerprints
from schemas.internal_pb2 import Chunk, Source
from streams.dedup import MISS_POSTS_MAX, Actions, dedup
from streams.table import MemoryTable


class RecordingTable(MemoryTable):
    """A table that keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[bytes]] = []

    def get_many(self, fingerprints: list[bytes]) -> list[bytes | None]:
        """See `Table`."""
        self.asked.append(list(fingerprints))
        return super().get_many(fingerprints)


def fingerprint(content: int) -> bytes:
    """A content's fingerprint."""
    return bytes([content]) * 16


def vector(content: int) -> bytes:
    """A content's vector."""
    return bytes([content, 0, 0, 0]) * 3


@st.composite
def cases(draw):
    """A chunk of posts with shared contents and several sources, and a table that holds some of the contents."""
    count = draw(st.integers(1, 8))
    contents = draw(st.lists(st.integers(0, count - 1), max_size=60))
    sources = [Source(topic=topic, partition=number) for topic, number in (("posts", 0), ("posts", 1), ("more", 0))]
    chunk = Chunk(
        version="v",
        sources=sources,
        fingerprints=b"".join(fingerprint(content) for content in range(count)),
        texts=[f"text {content}".encode() for content in range(count)],
        ids=[f"id{post}" for post in range(len(contents))],
        contents=contents,
        post_sources=draw(st.lists(st.integers(0, 2), min_size=len(contents), max_size=len(contents))),
        offsets=range(100, 100 + len(contents)),
        posted_ms=range(5_000, 5_000 + len(contents)),
    )
    table = RecordingTable()
    known = draw(st.sets(st.integers(0, count - 1)))
    table.put_many({fingerprint(content): vector(content) for content in known}, 1)
    return chunk, table, known


def posts_of(chunk: Chunk, posts=None) -> list[tuple]:
    """All that a chunk says of each of its posts."""
    fingerprints = split_fingerprints(chunk.fingerprints)
    return [
        (
            chunk.ids[post],
            chunk.texts[chunk.contents[post]],
            fingerprints[chunk.contents[post]],
            (chunk.sources[chunk.post_sources[post]].topic, chunk.sources[chunk.post_sources[post]].partition),
            chunk.offsets[post],
            chunk.posted_ms[post],
        )
        for post in (range(len(chunk.ids)) if posts is None else posts)
    ]


def misses_of(actions: Actions) -> list[Chunk]:
    """The chunks of misses, as the encoder gets them."""
    return [builder.build("v") for builder in actions.misses]


limits = st.integers(1, 12)


@given(cases(), limits)
def test_every_post_is_a_hit_or_a_miss(case, limit):
    """Exactly once in one of the two, and `miss_posts` counts the latter."""
    chunk, table, _ = case
    actions = dedup(chunk, table, limit)
    found = [chunk.ids[post] for post in actions.hits] + [
        post_id for miss in misses_of(actions) for post_id in miss.ids
    ]
    assert Counter(found) == Counter(chunk.ids)
    assert actions.miss_posts == len(chunk.ids) - len(actions.hits)


@given(cases(), limits)
def test_a_hit_is_a_post_whose_content_the_table_holds(case, limit):
    """No more, no less; its vector is the table's, and contents that are unknown have none."""
    chunk, table, known = case
    actions = dedup(chunk, table, limit)
    assert actions.hits == [post for post, content in enumerate(chunk.contents) if content in known]
    assert actions.vectors == [vector(content) if content in known else None for content in range(len(chunk.texts))]


@given(cases(), limits)
def test_misses_carry_all_that_the_encoder_needs(case, limit):
    """Id, exact text, fingerprint, source, offset and time of every miss are those of the chunk."""
    chunk, table, known = case
    carried = [row for miss in misses_of(dedup(chunk, table, limit)) for row in posts_of(miss)]
    missed = [post for post, content in enumerate(chunk.contents) if content not in known]
    assert sorted(carried) == sorted(posts_of(chunk, missed))


@given(cases(), limits)
def test_chunks_of_misses_keep_to_their_limit(case, limit):
    """None has more posts than allowed or none, and there are no more of them than needed."""
    actions = dedup(case[0], case[1], limit)
    assert all(1 <= builder.posts <= limit for builder in actions.misses)
    assert len(actions.misses) == -(-actions.miss_posts // limit)


@given(cases(), limits)
def test_a_text_is_sent_as_seldom_as_can_be(case, limit):
    """Once a chunk at most, and posts of one content stand in neighbouring chunks; no text is sent for nothing."""
    misses = misses_of(dedup(case[0], case[1], limit))
    for miss in misses:
        assert len(set(miss.texts)) == len(miss.texts)
        assert set(miss.contents) == set(range(len(miss.texts)))
    # A limit that all fit in sends each distinct content once.
    sent = Counter(text for miss in misses_of(dedup(case[0], case[1], 60)) for text in miss.texts)
    assert all(count == 1 for count in sent.values())
    assert sum(len(miss.texts) for miss in misses) <= sent.total() + max(0, len(misses) - 1)


@given(cases(), limits)
def test_each_distinct_content_is_looked_up_once(case, limit):
    """In one call, whatever the number of posts that share it."""
    chunk, table, _ = case
    dedup(chunk, table, limit)
    assert table.asked == [split_fingerprints(chunk.fingerprints)]
    assert len(set(table.asked[0])) == len(table.asked[0])


@given(cases(), limits)
def test_it_changes_neither_chunk_nor_table(case, limit):
    """It decides only: done again, after a transaction that failed, it says the same."""
    chunk, table, _ = case
    before, held = chunk.SerializeToString(deterministic=True), table.entries()
    first, again = dedup(chunk, table, limit), dedup(chunk, table, limit)
    assert first == again
    assert chunk.SerializeToString(deterministic=True) == before
    assert (table.entries(), table.offset) == (held, 1)


@pytest.mark.parametrize("count", [1, MISS_POSTS_MAX, MISS_POSTS_MAX + 1])
def test_copies_of_one_post_share_a_text(count):
    """The worked case: copies of one new post make one text for every hundred of them."""
    chunk = Chunk(
        sources=[Source(topic="posts")],
        fingerprints=fingerprint(1),
        texts=[b"new"],
        ids=[str(number) for number in range(count)],
        contents=[0] * count,
        post_sources=[0] * count,
        offsets=range(count),
        posted_ms=[0] * count,
    )
    assert [list(miss.texts) for miss in misses_of(dedup(chunk, MemoryTable()))] == [[b"new"]] * -(-count // 100)
