"""Laws of the line of chunks, and of the progress that follows it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Fatal
from schemas.internal_pb2 import Chunk, Source
from streams.checkpoint import Progress
from streams.line import Line, follow

numbers = st.integers(0, 2**53)
lines = st.builds(Line, numbers, st.lists(numbers, min_size=1, max_size=8).map(tuple))


def source(sequence, epoch_ms=5, partition=0):
    """A chunk's place in a line."""
    return Source(topic="posts", partition=partition, epoch_ms=epoch_ms, sequence=sequence)


@given(lines)
def test_a_line_is_read_as_it_was_written(line):
    """`parse` inverts `str`, for the partition count that it was written for and no other."""
    assert Line.parse(str(line), len(line.sequences)) == line
    assert Line.parse(str(line), len(line.sequences) + 1) is None


@given(st.none() | st.text() | st.text("0123456789:,-", max_size=12), st.integers(1, 4))
def test_other_metadata_is_no_line(metadata, partitions):
    """What tools write there is None or a whole line, never an error."""
    line = Line.parse(metadata, partitions)
    assert line is None or len(line.sequences) == partitions


def test_the_longest_line_fits_a_commit():
    """256 partitions with a trillion chunks each stay under the 4,096 bytes that a broker keeps."""
    assert len(str(Line(10**13 - 1, (10**12 - 1,) * 256))) <= 4_096


@given(lines, st.data())
def test_after_adds_what_was_sent(line, data):
    """Each partition's number grows by its own chunks, the epoch stays."""
    sent = data.draw(st.lists(st.integers(0, 100), min_size=len(line.sequences), max_size=len(line.sequences)))
    after = line.after(sent)
    assert after.epoch_ms == line.epoch_ms
    assert [new - old for new, old in zip(after.sequences, line.sequences, strict=True)] == sent


def test_a_new_line_begins_at_zero():
    """So the first chunk is number 1."""
    assert Line.begin(7, 3) == Line(7, (0, 0, 0))


@given(st.integers(1, 50))
def test_an_unbroken_line_is_followed(count):
    """1, 2, 3 and so on, and then a later line from 1 again."""
    seen = None
    for new in [*(source(number, 5) for number in range(1, count)), source(1, 6), source(2, 6)]:
        follow(seen, new)
        seen = new


@given(st.integers(0, 6), st.integers(0, 10), st.integers(4, 6))
def test_anything_else_is_a_gap(last, sequence, epoch_ms):
    """After `last` of epoch 5 only the next one, or number 1 of a later epoch, is taken."""
    seen = source(last, 5) if last else None
    allowed = (
        sequence == 1 if seen is None or epoch_ms > 5 else epoch_ms == 5 and sequence == last + 1
    )  # a first chunk has no epoch to compare with
    if allowed:
        follow(seen, source(sequence, epoch_ms))
    else:
        with pytest.raises(Fatal, match=r"missing before.*accept_gaps"):
            follow(seen, source(sequence, epoch_ms))


def test_progress_follows_each_source_by_itself():
    """Progress after a chunk is the next offset and the last number of every source met so far."""
    progress = Progress()
    progress = progress.after(Chunk(sources=[source(1), source(1, partition=1)]), 10)
    progress = progress.after(Chunk(sources=[source(2)]), 11)
    progress = progress.after(Chunk(sources=[source(2, partition=1)]), 14)
    assert progress.lookups_offset == 15
    assert {line: found.sequence for line, found in progress.sources.items()} == {
        ("posts", 0, ""): 2,
        ("posts", 1, ""): 2,
    }
    assert Progress.from_bytes(progress.to_bytes()) == progress


def test_progress_is_a_value():
    """What it was before a chunk stays: a transaction that failed is done again from there."""
    before = Progress().after(Chunk(sources=[source(1)]), 0)
    first, again = (before.after(Chunk(sources=[source(2)]), 1) for _ in range(2))
    assert first == again
    assert before.sources["posts", 0, ""].sequence == 1


def test_progress_stops_at_a_gap_unless_told_to_go_on():
    """A missing chunk stops dedup; with accept_gaps it goes on, and the line goes on from there."""
    before = Progress().after(Chunk(sources=[source(1)]), 0)
    with pytest.raises(Fatal, match="expected 2"):
        before.after(Chunk(sources=[source(3)]), 1)
    assert before.sources["posts", 0, ""].sequence == 1
    after = before.after(Chunk(sources=[source(3)]), 1, accept_gaps=True)
    assert after.after(Chunk(sources=[source(4)]), 2).lookups_offset == 3


def test_a_line_of_a_replay_is_kept_with_its_sums_until_the_replay_ends():
    """Then it is forgotten, and its chunks count as done: they are read again after a commit that nobody told of."""
    of_live = Chunk(ids=["a"], sources=[source(1)])
    first = Chunk(ids=["a", "b", "c"], sources=[Source(topic="old", epoch_ms=5, sequence=1, job="j")])
    last = Chunk(sources=[Source(topic="old", job="j", ended=True)])
    progress = Progress().after(of_live, 0, hits=1).after(first, 1, hits=2)
    assert [(one.posts, one.hits) for one in progress.sources.values()] == [(0, 0), (3, 2)]
    assert progress.has(first)
    progress = progress.after(last, 2)
    assert list(progress.sources) == [("posts", 0, "")]
    assert progress.has(first)
    assert progress.has(last)
    assert not progress.has(Chunk(sources=[source(2)]))
