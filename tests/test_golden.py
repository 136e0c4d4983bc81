"""Golden messages: bytes on disk that every later build must read to the same values. Never edited."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.embedding import EmbeddingParts, vectors_of
from schemas.internal_pb2 import Checkpoint, Chunk, Deletion, Source, Standing, Vectors
from schemas.post import Post, decode_post
from schemas.public_pb2 import CACHED, COMPUTED, FLOAT32, INT8, Embedding
from streams.checkpoint import Progress
from streams.learned import Learned

GOLDEN = Path(__file__).parent / "golden"
FIRST, SECOND = bytes(range(16)), bytes(range(16, 32))
NUMBERS = np.array([[0.5, -1.25, 3.0], [1e-3, 0.0, -7.5]], "<f4")
VERSION = "0123456789ab"
SOURCES = [
    Source(topic="posts", partition=3, epoch_ms=1_700_000_000_123, sequence=42),
    Source(topic="more-posts", partition=0, epoch_ms=1_700_000_000_456, sequence=7),
]
REPLAYED = Source(
    topic="old-posts",
    partition=1,
    epoch_ms=1_700_000_000_789,
    sequence=3,
    job="posts-2026",
    ended=True,
    posts=1_200,
    hits=1_100,
)
STANDING = Standing(version=VERSION, share=0.25, promoted=True, retires_ms=1_800_000_000_000)
MIRRORED = Standing(version=VERSION, share=0.5, promoted=True, retires_ms=1_800_000_000_000, mirrored=True)
DELETION = Deletion(id="gone-é", source=1, offset=5_000_000_001)
MESSAGES = {
    "embedding": Embedding(
        post_id="post-é",
        ray="textray",
        version=VERSION,
        dtype=FLOAT32,
        dims=3,
        vector=NUMBERS[0].tobytes(),
        fingerprint=FIRST,
        source_topic="posts",
        source_partition=3,
        source_offset=5_000_000_000,
        origin=CACHED,
        posted_ms=1_700_000_001_000,
        embedded_ms=1_700_000_001_250,
    ),
    "chunk": Chunk(
        version=VERSION,
        sources=SOURCES,
        fingerprints=FIRST + SECOND,
        texts=[b"hello", "Grüße \U0001f600\n".encode()],
        ids=["a", "b", "ü"],
        contents=[0, 1, 0],
        post_sources=[0, 0, 1],
        offsets=[10, 11, 5_000_000_000],
        posted_ms=[1_700_000_001_000, 1_700_000_001_001, 1_700_000_001_002],
    ),
    "vectors": Vectors(version=VERSION, dims=3, fingerprints=FIRST + SECOND, vectors=NUMBERS.tobytes()),
    "checkpoint": Checkpoint(lookups_offset=123_456_789_012, sources=SOURCES),
}
EIGHTHS = np.array([[4, -10, 127], [0, 1, -127]], np.int8)
# What was added to a format later, step by step: records of the earlier ones are read as ever.
LATER_FORMATS: dict[str, list[dict[str, object]]] = {
    "embedding": [
        {"dtype": INT8, "scale": 0.125, "vector": EIGHTHS[0].tobytes()},
        {"job": "posts-2026"},
        {"promoted": True, "retires_ms": 1_800_000_000_000},
    ],
    "vectors": [{"bits": 8, "vectors": EIGHTHS.tobytes()}, {"forgotten": SECOND + FIRST, "copied": True}],
    "chunk": [
        {"backfill": True},
        {"probe": True, "share": 0.25, "sources": [REPLAYED]},
        {"standings": [STANDING]},
        {"standings": [MIRRORED], "deletions": [DELETION], "forgotten": SECOND},
    ],
    "checkpoint": [{"sources": [*SOURCES, REPLAYED]}, {"standing": STANDING}, {"standing": MIRRORED}],
}


def formats(name: str):
    """A message in each of its formats, the first one first."""
    message = MESSAGES[name]
    yield message
    for fields in LATER_FORMATS[name]:
        kept = {field.name: value for field, value in message.ListFields()}
        message = type(message)(**{**kept, **fields})
        yield message


def golden(name: str, number: int = 1) -> bytes:
    """The bytes as they were written once."""
    return (GOLDEN / f"{name}-{number}.bin").read_bytes()


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_messages_read_as_ever(name):
    """Each message of each format decodes to the values it was made of, with no field left unknown."""
    last = MESSAGES[name]
    for number, expected in enumerate(formats(name), 1):
        last = type(expected).FromString(golden(name, number))
        assert last == expected
    # So that a field added to the format is added here too, as another golden message.
    for message in (last, *getattr(last, "sources", [])[-1:], MIRRORED, DELETION):
        assert {field.name for field, _ in message.ListFields()} == {field.name for field in message.DESCRIPTOR.fields}


@pytest.mark.parametrize("name", ["post-protobuf", "post-json"])
def test_golden_posts_read_as_ever(name):
    """A post of format 1, in either form, is the same post."""
    assert decode_post(golden(name), 65_536) == Post("post-é", "Grüße \U0001f600\nhello")


def test_what_we_write_of_a_golden_checkpoint_is_what_was_read():
    """A checkpoint goes through `Progress` unharmed."""
    progress = Progress.from_bytes(golden("checkpoint"))
    assert progress.lookups_offset == 123_456_789_012
    assert list(progress.sources) == [("posts", 3, ""), ("more-posts", 0, "")]
    assert Checkpoint.FromString(progress.to_bytes()) == MESSAGES["checkpoint"]


def test_golden_vectors_are_for_their_version_alone():
    """The changelog gives each fingerprint its own vector, and nothing to another version."""
    found = Learned.of(golden("vectors"), VERSION).vectors
    assert found == {FIRST: NUMBERS[0].tobytes(), SECOND: NUMBERS[1].tobytes()}
    assert Learned.of(golden("vectors"), "ba9876543210").vectors == {}


def test_golden_vectors_of_fewer_bits_are_as_long_as_they_say():
    """int8 has a byte a number; what is read back is what is worth that many steps of the scale."""
    assert Learned.of(golden("vectors", 2), VERSION).vectors == {
        FIRST: EIGHTHS[0].tobytes(),
        SECOND: EIGHTHS[1].tobytes(),
    }
    read = Embedding.FromString(golden("embedding", 2))
    assert vectors_of([read, read]).tolist() == [[0.5, -1.25, 15.875]] * 2


def test_vectors_that_do_not_fit_their_dims_are_none():
    """Cut anywhere they would be another content's numbers, or half a vector."""
    whole = Vectors.FromString(golden("vectors"))
    for change in ({"dims": 0}, {"dims": whole.dims + 1}, {"vectors": whole.vectors[:-4]}, {"fingerprints": FIRST}):
        broken = Vectors.FromString(golden("vectors"))
        for name, value in change.items():
            setattr(broken, name, value)
        assert Learned.of(broken.SerializeToString(), VERSION).vectors == {}


def test_a_golden_embedding_gives_its_vector():
    """The vector is little-endian float32."""
    embedding = Embedding.FromString(golden("embedding"))
    assert vectors_of([embedding, embedding]).tolist() == [[0.5, -1.25, 3.0]] * 2
    assert vectors_of([]).shape == (0, 0)


def test_a_golden_embedding_can_be_made_of_its_parts():
    """`EmbeddingParts` joins to the golden record, as parsed."""
    parts, golden_one = EmbeddingParts("textray", VERSION), MESSAGES["embedding"]
    joined = (
        parts.head(CACHED, golden_one.embedded_ms, Standing())
        + parts.source("posts", 3)
        + parts.content(FIRST, NUMBERS[0].tobytes())
        + parts.post("post-é", golden_one.source_offset, golden_one.posted_ms)
    )
    assert Embedding.FromString(joined) == golden_one


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
times = st.integers(0, 2**62)


@given(
    st.builds(
        Embedding,
        post_id=names,
        ray=names,
        version=names,
        fingerprint=st.binary(min_size=16, max_size=16),
        source_topic=names,
        source_partition=st.integers(0, 2**31 - 1),
        source_offset=times,
        origin=st.sampled_from([COMPUTED, CACHED]),
        posted_ms=times,
        embedded_ms=times,
        promoted=st.booleans(),
        retires_ms=times,
    ),
    st.lists(st.floats(width=32), max_size=50),
    st.permutations(range(4)),
)
def test_parts_in_any_order_are_the_whole(whole, numbers, order):
    """Concatenated parts parse to the very message made at once."""
    vector = np.array(numbers, "<f4").tobytes()
    whole.dtype, whole.dims, whole.vector = FLOAT32, len(numbers), vector
    parts = EmbeddingParts(whole.ray, whole.version)
    pieces = [
        parts.head(whole.origin, whole.embedded_ms, Standing(promoted=whole.promoted, retires_ms=whole.retires_ms)),
        parts.source(whole.source_topic, whole.source_partition),
        parts.content(whole.fingerprint, vector),
        parts.post(whole.post_id, whole.source_offset, whole.posted_ms),
    ]
    assert Embedding.FromString(b"".join(pieces[index] for index in order)) == whole
