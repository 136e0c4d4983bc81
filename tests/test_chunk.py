"""Laws of reading a chunk: what is none is told, and nothing else."""

from collections.abc import Callable

import pytest

from schemas.chunk import ChunkBuilder, parse_chunk
from schemas.errors import Fatal
from schemas.internal_pb2 import Chunk, Vectors


def chunk() -> Chunk:
    """Three posts of two contents, from two topics."""
    builder = ChunkBuilder()
    for number, (text, topic) in enumerate([(b"a", "one"), (b"b", "two"), (b"a", "two")]):
        builder.add_post(f"id{number}", builder.add_content(text * 16, text), (topic, 0), number, 5)
    return builder.build("version")


def spoilt(change: Callable[[Chunk], object]) -> bytes:
    """One that is not whole."""
    made = chunk()
    change(made)
    return made.SerializeToString()


NO_CHUNKS = {
    "json": b'{"id": "not", "text": "ours"}',
    "vectors": Vectors(version="v", dims=1, fingerprints=bytes(32), vectors=bytes(8)).SerializeToString(),
    "one vector": Vectors(version="v", dims=1, fingerprints=bytes(16), vectors=bytes(4)).SerializeToString(),
    "no such content": spoilt(lambda one: one.contents.__setitem__(0, 9)),
    "no such source": spoilt(lambda one: one.post_sources.__setitem__(0, 2)),
    "a column that is short": spoilt(lambda one: one.offsets.pop()),
    "a content of no post": spoilt(lambda one: one.contents.__setitem__(1, 0)),
    "half a fingerprint": spoilt(lambda one: setattr(one, "fingerprints", one.fingerprints[:-1])),
}


@pytest.mark.parametrize("value", NO_CHUNKS.values(), ids=NO_CHUNKS)
def test_what_is_no_chunk_is_told_by_its_place(value: bytes) -> None:
    """Also where Protobuf takes it for one; who accepts gaps gets an empty one."""
    with pytest.raises(Fatal, match="misses/3 offset 7 holds no chunk"):
        parse_chunk(value, "misses/3 offset 7")
    assert parse_chunk(value, "misses/3 offset 7", accept_gaps=True) == Chunk()


def test_a_chunk_is_what_was_built() -> None:
    """And one of nothing is one."""
    assert parse_chunk(chunk().SerializeToString(), "") == chunk()
    assert parse_chunk(None, "") == Chunk()
