"""A window: the chunks that the encoder computes and commits together. Pure; knows no client and no model."""

from dataclasses import dataclass, field

from encoders.batching import about_tokens
from schemas.chunk import Place
from schemas.content import split_fingerprints
from schemas.internal_pb2 import Chunk

POST_BYTES_MAX = 64 * 2**20
"""Of the texts of a window's posts, each counted: what stands in for them has so much if all are rejected."""


@dataclass(slots=True)
class Window:
    """Gathers chunks and their distinct contents."""

    first_s: float = 0.0
    chunks: list[Chunk] = field(default_factory=list[Chunk])
    first_offsets: dict[Place, int] = field(default_factory=dict[Place, int])
    next_offsets: dict[Place, int] = field(default_factory=dict[Place, int])
    texts: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    tokens: int = 0
    posts: int = 0
    deletions: int = 0
    post_bytes: int = 0
    share: float = 1.0
    """Of the encoder's time, which it may take at most: the least of its chunks'."""

    def add(self, chunk: Chunk, place: Place, offset: int, now_s: float) -> None:
        """Add the chunk at `offset` of `place`, a topic and partition."""
        if not self.chunks:
            self.first_s = now_s
        self.chunks.append(chunk)
        self.posts += len(chunk.ids)
        self.deletions += len(chunk.deletions)
        self.share = min(self.share, chunk.share or 1.0)
        self.first_offsets.setdefault(place, offset)
        self.next_offsets[place] = offset + 1
        for fingerprint, text in zip(split_fingerprints(chunk.fingerprints), chunk.texts, strict=True):
            if fingerprint not in self.texts:
                self.texts[fingerprint] = text
                self.tokens += about_tokens(len(text))
        sizes = [len(text) for text in chunk.texts]
        self.post_bytes += sum(map(sizes.__getitem__, chunk.contents))

    def is_full(self, tokens: int, posts: int) -> bool:
        """Whether it holds so many tokens to compute, or records to publish: repeats add no tokens."""
        return self.tokens >= tokens or self.posts + self.deletions >= posts or self.post_bytes >= POST_BYTES_MAX

    def is_old(self, now_s: float, wait_s: float) -> bool:
        """Whether its oldest chunk has waited long enough."""
        return bool(self.chunks) and now_s - self.first_s >= wait_s
