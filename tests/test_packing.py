"""Laws of packing: every post in one chunk of the right partition, in order, within the limits."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from schemas.chunk import ChunkBuilder, part_of
from schemas.content import fingerprinter, normalise, partition_of, split_fingerprints
from schemas.post import ID_BYTES_MAX, Post
from streams.packing import CHUNK_BYTES_MAX, Packer
from streams.settings import Settings
from streams.topics import RECORD_BYTES_MAX

FINGERPRINT = fingerprinter("v")
# Few letters, so that posts repeat, and repeat in another spelling.
TEXTS = st.sampled_from(["a", "b", "c", "d\n", "d\r", "d\r\n", "\u00e9", "e\u0301", "x" * 200_000])
SOURCES = st.sampled_from([("posts", 0), ("posts", 1), ("other", 0)])
ids = st.text(st.sampled_from("a\u00e9\U0001f600"), min_size=1, max_size=64)
loads = st.lists(st.tuples(TEXTS, SOURCES), max_size=40)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 12))


def chunks_of(packer: Packer):
    """What the packer holds, as readers get it: (partition, chunk) in order."""
    return [(partition, builder.build("v")) for partition, builder in packer.take()]


def pack(load, partitions, chunk_posts_max):
    """A load's posts, numbered by their offsets, as chunks."""
    packer = Packer(FINGERPRINT, partitions, chunk_posts_max)
    for offset, (text, source) in enumerate(load):
        packer.add(Post(f"id{offset}", text), source, offset, 1_000 + offset)
    return chunks_of(packer)


def test_a_chunk_is_of_its_packers_lane():
    """And so are parts of it."""
    for is_backfill in (False, True):
        packer = Packer(FINGERPRINT, 1, 10, is_backfill=is_backfill)
        packer.add(Post("a", "one"), ("posts", 0), 0, 1)
        packer.add(Post("b", "two"), ("posts", 0), 1, 1)
        ((_, chunk),) = chunks_of(packer)
        assert chunk.backfill == part_of(chunk, 1).backfill == is_backfill


def rows(chunk):
    """A chunk's posts: (id, text, source, offset, posted_ms) each."""
    return [
        (
            chunk.ids[post],
            chunk.texts[chunk.contents[post]].decode(),
            (chunk.sources[chunk.post_sources[post]].topic, chunk.sources[chunk.post_sources[post]].partition),
            chunk.offsets[post],
            chunk.posted_ms[post],
        )
        for post in range(len(chunk.ids))
    ]


@given(loads, shapes)
def test_every_post_is_in_one_chunk_with_all_that_is_its_own(load, shape):
    """Id, normalised text, source, offset and time arrive unharmed, once."""
    packed = sorted((row for _, chunk in pack(load, *shape) for row in rows(chunk)), key=lambda row: row[3])
    assert packed == [
        (f"id{offset}", normalise(text), source, offset, 1_000 + offset) for offset, (text, source) in enumerate(load)
    ]


@given(loads, shapes)
def test_a_chunk_is_of_the_partition_that_owns_its_contents(load, shape):
    """Each text stands beside its own fingerprint, and the fingerprint's partition is the chunk's."""
    for partition, chunk in pack(load, *shape):
        fingerprints = split_fingerprints(chunk.fingerprints)
        assert fingerprints == [FINGERPRINT(text) for text in chunk.texts]
        assert {partition_of(fingerprint, shape[0]) for fingerprint in fingerprints} == {partition}


@given(loads, shapes)
def test_a_content_is_in_a_chunk_once(load, shape):
    """However its posts spell it: what counts is the normalised content."""
    for _, chunk in pack(load, *shape):
        assert len(set(chunk.texts)) == len(chunk.texts)


@given(loads, shapes)
def test_posts_of_a_partition_keep_their_order(load, shape):
    """Read one after another, the chunks of a partition have rising offsets."""
    offsets = defaultdict(list)
    for partition, chunk in pack(load, *shape):
        offsets[partition] += chunk.offsets
    assert all(found == sorted(found) for found in offsets.values())


@given(loads, shapes)
def test_a_chunk_is_closed_at_its_limits(load, shape):
    """No chunk has more posts than allowed or none, and none went on after it was full of bytes."""
    for _, chunk in pack(load, *shape):
        assert 1 <= len(chunk.ids) <= shape[1]
        without_last = sum(len(text) for text in chunk.texts[:-1])
        assert without_last < CHUNK_BYTES_MAX


@given(loads, loads, shapes)
def test_take_leaves_nothing(first, second, shape):
    """After `take` a packer is as good as new."""
    packer = Packer(FINGERPRINT, *shape)
    for load in (first, second):
        for offset, (text, source) in enumerate(load):
            packer.add(Post(f"id{offset}", text), source, offset, 1_000 + offset)
        taken = chunks_of(packer)
    assert taken == pack(second, *shape)
    assert packer.take() == []


wide = st.integers(0, 2**62)


@given(st.lists(st.tuples(ids, st.sampled_from(["a", "é" * 50, "b" * 3_000]), wide, wide), min_size=15, max_size=60))
def test_a_chunk_is_no_larger_than_its_builder_says(load):
    """Serialised, with the largest numbers; its sources, and 64 bytes that every chunk has, come on top."""
    builder = ChunkBuilder()
    for post_id, text, offset, posted_ms in load:
        content = builder.add_content(FINGERPRINT(text.encode()), text.encode())
        builder.add_post(post_id, content, ("posts", 0), offset, posted_ms)
    assert builder.build("0123456789ab", []).ByteSize() <= builder.size_bytes + 64


def _limit(name: str) -> int:
    """The most that a setting may be."""
    return next(rule.le for rule in Settings.model_fields[name].metadata if hasattr(rule, "le"))


def test_the_largest_chunk_fits_a_record():
    """At the limits of all settings, ids of 4-byte characters and a last text that NFC makes three times as long
    still make a chunk that the topic takes.
    """
    packer = Packer(FINGERPRINT, 1, _limit("chunk_posts_max"))
    letters = [chr(0x1F600 + number) for number in range(16)]
    musical = "\U0001d160"  # 4 bytes, and 12 in NFC
    for number in range(5_040):
        digits = f"{number:04x}"
        post_id = musical * 60 + "".join(letters[int(digit, 16)] for digit in digits)
        assert len(post_id.encode()) == ID_BYTES_MAX
        packer.add(Post(post_id, "short"), ("posts", 255), 2**62 + number, 2**42)
    packer.add(Post("last", musical * (_limit("text_bytes_max") // 4)), ("posts", 255), 2**62, 2**42)
    assert max(chunk.ByteSize() for _, chunk in chunks_of(packer)) < RECORD_BYTES_MAX
