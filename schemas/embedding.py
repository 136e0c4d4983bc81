"""The output record: an `Embedding` made from parts that are each serialised once.

Protobuf merges concatenated messages (https://protobuf.dev/programming-guides/encoding/#last-one-wins), so the
fields that many records share (ray, version, vector) are serialised once and joined with each post's own.
"""

from dataclasses import dataclass, field

import numpy as np

from schemas.internal_pb2 import Standing
from schemas.public_pb2 import BINARY, CACHED, COMPUTED, FLOAT16, FLOAT32, INT8, DType, Embedding, Origin
from schemas.vectors import Matrix, VectorForm

DTYPES: dict[str, DType] = {"float32": FLOAT32, "float16": FLOAT16, "int8": INT8, "binary": BINARY}
"""What a record says of each of `schemas.vectors.OUTPUTS`."""
_OUTPUTS = {dtype: output for output, dtype in DTYPES.items()}
_ORIGINS: dict[Origin, str] = {COMPUTED: "computed", CACHED: "cached"}


@dataclass(frozen=True, slots=True)
class EmbeddingParts:
    """Serialises the parts of one version's embeddings; `b"".join` of one of each is a whole `Embedding`."""

    ray: str
    version: str
    form: VectorForm = field(default_factory=VectorForm)

    def head(self, origin: Origin, embedded_ms: int, standing: Standing) -> bytes:
        """What all records of a batch share, made while their version stands so."""
        return Embedding(
            ray=self.ray,
            version=self.version,
            dtype=DTYPES[self.form.output],
            scale=self.form.scale,
            origin=origin,
            embedded_ms=embedded_ms,
            promoted=standing.promoted,
            retires_ms=standing.retires_ms,
        ).SerializeToString()

    def source(self, topic: str, partition: int, job: str = "") -> bytes:
        """What all posts from one partition share, those of a replay by its name."""
        return Embedding(source_topic=topic, source_partition=partition, job=job).SerializeToString()

    def content(self, fingerprint: bytes, vector: bytes) -> bytes:
        """What all posts with one content share; `vector` is as the form stores it."""
        dims = self.form.dims_of(len(vector))
        return Embedding(dims=dims, vector=vector, fingerprint=fingerprint).SerializeToString()

    def post(self, post_id: str, offset: int, posted_ms: int) -> bytes:
        """What is the post's own."""
        return Embedding(post_id=post_id, source_offset=offset, posted_ms=posted_ms).SerializeToString()


def form_of(embedding: Embedding) -> VectorForm | None:
    """How the vector of a record is stored; None if it says none that is known, or the vector is not of that size."""
    output = _OUTPUTS.get(embedding.dtype)
    if output is None or not embedding.dims or (output == "int8" and not embedding.scale > 0):
        return None
    form = VectorForm(output, embedding.scale)
    return form if len(embedding.vector) * 8 == embedding.dims * form.bits else None


def origin_name(origin: Origin) -> str:
    """As a word: computed, cached, or unknown."""
    return _ORIGINS.get(origin, "unknown")


def vectors_of(embeddings: list[Embedding]) -> Matrix:
    """The vectors of embeddings of one version as a matrix of float32, a row each: shape (len(embeddings), dims)."""
    form = form_of(embeddings[0]) if embeddings else None
    if form is None:
        return np.empty((0, 0), dtype=np.float32)
    return form.unpack(b"".join([embedding.vector for embedding in embeddings]), len(embeddings))
