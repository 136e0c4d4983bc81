"""The output record: an `Embedding` made from parts that are each serialised once.

Protobuf merges concatenated messages (https://protobuf.dev/programming-guides/encoding/#last-one-wins), so the
fields that many records share (ray, version, vector) are serialised once and joined with each post's own.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.public_pb2 import FLOAT32, Embedding, Origin

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbeddingParts:
    """Serialises the parts of one version's embeddings; `b"".join` of one of each is a whole `Embedding`."""

    ray: str
    version: str

    def head(self, origin: Origin, embedded_ms: int) -> bytes:
        """What all records of a batch share."""
        return Embedding(
            ray=self.ray, version=self.version, dtype=FLOAT32, origin=origin, embedded_ms=embedded_ms
        ).SerializeToString()

    def source(self, topic: str, partition: int) -> bytes:
        """What all posts from one partition share."""
        return Embedding(source_topic=topic, source_partition=partition).SerializeToString()

    def content(self, fingerprint: bytes, vector: bytes) -> bytes:
        """What all posts with one content share; `vector` is little-endian float32."""
        return Embedding(dims=len(vector) // 4, vector=vector, fingerprint=fingerprint).SerializeToString()

    def post(self, post_id: str, offset: int, posted_ms: int) -> bytes:
        """What is the post's own."""
        return Embedding(post_id=post_id, source_offset=offset, posted_ms=posted_ms).SerializeToString()


def vectors_of(embeddings: list[Embedding]) -> Matrix:
    """The vectors of embeddings of one version as a matrix, a row each: shape (len(embeddings), dims)."""
    if not embeddings:
        return np.empty((0, 0), dtype=np.float32)
    joined = b"".join([embedding.vector for embedding in embeddings])
    return np.frombuffer(joined, dtype="<f4").reshape(len(embeddings), -1)
