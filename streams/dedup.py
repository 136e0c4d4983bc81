"""The decision of dedup, and nothing else: which posts of a chunk are hits, and which are misses."""

from collections.abc import Callable
from dataclasses import dataclass

from schemas.chunk import ChunkBuilder, key_by, sample, select
from schemas.content import split_fingerprints
from schemas.internal_pb2 import Chunk, Standing
from streams.table import Table

MISS_POSTS_MAX = 100
"""Most posts in a chunk of misses: the encoder commits whole chunks, and 100 posts take a small CPU under a second."""


@dataclass(frozen=True, slots=True)
class Actions:
    """What to do with the posts of a chunk; every post is in exactly one of the two.

    `hits` are indexes of posts, `vectors` the vector of each content (None where unknown), `misses` chunks to encode.
    """

    hits: list[int]
    vectors: list[bytes | None]
    misses: list[ChunkBuilder]

    @property
    def miss_posts(self) -> int:
        """How many posts are misses."""
        return sum(builder.posts for builder in self.misses)

    @property
    def vector_bytes(self) -> int:
        """How large the vectors of the hits are, each as often as it is given out."""
        return len(self.hits) * next((len(vector) for vector in self.vectors if vector is not None), 0)


NOTHING = Actions([], [], [])
"""Of a chunk whose hits are only to be counted."""


def own_part(chunk: Chunk, standing: Standing, fingerprints: Callable[[bytes], bytes]) -> Chunk:
    """What of a chunk of `lookups` is a version's to embed, by what it is to its ray, as a chunk of its own: of one for
    all versions its share of the contents, of one for another version nothing.

    `fingerprints` makes those of the version of hashes. The chunk itself may be changed.
    """
    if chunk.version not in ("", standing.version):
        return Chunk()
    if chunk.ids and not chunk.version and standing.share < 1:
        chunk = sample(chunk, standing.share)
    key_by(chunk, fingerprints, standing.version)
    return chunk


def dedup(chunk: Chunk, table: Table, miss_posts_max: int = MISS_POSTS_MAX) -> Actions:
    """Look every distinct content of a chunk up once, and sort its posts into hits and misses."""
    fingerprints = split_fingerprints(chunk.fingerprints)
    vectors = list(table.get_many(fingerprints))
    contents = list(chunk.contents)
    if None not in vectors:
        return Actions(list(range(len(contents))), vectors, [])
    hits = [post for post, content in enumerate(contents) if vectors[content] is not None]
    misses = [post for post, content in enumerate(contents) if vectors[content] is None]
    # Posts of one content stand together, so that they share a chunk and its text is sent once.
    misses.sort(key=contents.__getitem__)
    builders = [
        select(chunk, fingerprints, misses[start : start + miss_posts_max])
        for start in range(0, len(misses), miss_posts_max)
    ]
    return Actions(hits, vectors, builders)
