"""A window under way in the encoder, and what comes of it: vectors, and contents that have none."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np

from encoders.encoder import EncodedBatch
from encoders.rescue import NOT_FINITE, OUT_OF_MEMORY
from schemas.content import partition_of, split_fingerprints
from schemas.embedding import EmbeddingParts
from schemas.errors import Reject
from schemas.internal_pb2 import Chunk, Standing, Vectors
from schemas.post import Post
from schemas.public_pb2 import CACHED, COMPUTED
from schemas.vectors import VectorForm
from streams.rejected import Original
from streams.suspect import KILLS_ENCODER, TRIES_MAX
from streams.topics import Topics
from streams.transactions import KeyValue
from streams.window import Window

DETAILS = {
    OUT_OF_MEMORY: "the encoder's device has not the memory for this text alone",
    NOT_FINITE: "the text's vector holds NaN or infinity",
    KILLS_ENCODER: f"{TRIES_MAX} encode processes in a row ended while they computed this text alone",
}
"""Why a post has no embedding, by reason: the header `manyray-detail`."""
_VECTORS_BYTES_MAX = 512 * 1024


@dataclass(slots=True)
class Submitted:
    """A window under way: which contents it computes, and where the vectors of the others come from."""

    window: Window
    computing: list[bytes]
    future: Future[EncodedBatch]
    known: dict[bytes, bytes]
    lent: dict[bytes, "Submitted"]
    queued_s: float
    vectors: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    failed: dict[bytes, str] = field(default_factory=dict[bytes, str])
    """Contents that have no vector, and the reason; known when it is settled."""

    def vector(self, fingerprint: bytes) -> bytes:
        """A content's vector; every window before this one is done."""
        return (
            self.vectors.get(fingerprint) or self.known.get(fingerprint) or self.lent[fingerprint].vector(fingerprint)
        )

    def settle(self, batch: EncodedBatch, form: VectorForm) -> None:
        """Take what was computed, and what was lent: it then refers to no other window, which may be forgotten."""
        rows = form.pack(np.nan_to_num(batch.vectors) if batch.failed else batch.vectors)
        size = rows.shape[1] * rows.itemsize
        blob = rows.tobytes()
        for row, fingerprint in enumerate(self.computing):
            if row in batch.failed:
                self.failed[fingerprint] = batch.failed[row]
            else:
                self.vectors[fingerprint] = blob[row * size : (row + 1) * size]
        for fingerprint, lender in self.lent.items():
            if fingerprint in lender.failed:
                self.failed[fingerprint] = lender.failed[fingerprint]
            else:
                self.known[fingerprint] = lender.vector(fingerprint)
        self.lent.clear()

    def outputs(self, parts: EmbeddingParts, now_ms: int) -> Iterator[tuple[Chunk, Iterator[KeyValue]]]:
        """Each chunk, and the output records of its posts, key and value each; to be taken before the next chunk."""
        first = set(self.computing)  # the post for which a content was computed is the first one with it
        for chunk in self.window.chunks:
            yield chunk, self._embeddings(chunk, first, parts, now_ms)

    def unembedded(self) -> Iterator[tuple[Original, Reject]]:
        """The posts that get no embedding, and why; their records are still to be read back."""
        if not self.failed:
            return
        for chunk in self.window.chunks:
            fingerprints = split_fingerprints(chunk.fingerprints)
            for index, post_id in enumerate(chunk.ids):
                content = chunk.contents[index]
                reason = self.failed.get(fingerprints[content])
                if reason is not None:
                    source = chunk.sources[chunk.post_sources[index]]
                    place = (source.topic, source.partition, chunk.offsets[index])
                    post = Post(post_id, chunk.texts[content].decode())
                    rebuilt = Original.rebuilt(post, *place, chunk.posted_ms[index])
                    yield replace(rebuilt, job=source.job), Reject(reason, DETAILS[reason])

    def _embeddings(self, chunk: Chunk, first: set[bytes], parts: EmbeddingParts, now_ms: int) -> Iterator[KeyValue]:
        """Of those posts of a chunk that get one; contents that are met are taken out of `first`."""
        computed, cached = (parts.head(origin, now_ms, standing_of(chunk)) for origin in (COMPUTED, CACHED))
        fingerprints = split_fingerprints(chunk.fingerprints)
        contents = [
            None if fingerprint in self.failed else parts.content(fingerprint, self.vector(fingerprint))
            for fingerprint in fingerprints
        ]
        sources = [parts.source(source.topic, source.partition, source.job) for source in chunk.sources]
        for index, post_id in enumerate(chunk.ids):
            number = chunk.contents[index]
            content = contents[number]
            if content is None:
                continue
            head = computed if fingerprints[number] in first else cached
            first.discard(fingerprints[number])
            own = parts.post(post_id, chunk.offsets[index], chunk.posted_ms[index])
            yield post_id.encode(), b"".join((head, sources[chunk.post_sources[index]], content, own))


def standing_of(chunk: Chunk) -> Standing:
    """What its version was to the posts of a chunk of misses."""
    return next(iter(chunk.standings), Standing())


def tombstones(chunk: Chunk) -> Iterator[tuple[bytes, list[tuple[str, bytes]]]]:
    """What the deletions of a chunk come to: keys of records without a value, and headers, which say where the deletion
    stands among the posts.
    """
    for deletion in chunk.deletions:
        source = chunk.sources[deletion.source]
        told = {
            "manyray-topic": source.topic,
            "manyray-partition": str(source.partition),
            "manyray-offset": str(deletion.offset),
        }
        if source.job:
            told["manyray-job"] = source.job
        yield deletion.id.encode(), [(name, text.encode()) for name, text in told.items()]


def pack_forgotten(chunks: Iterable[Chunk], topics: Topics, partitions: int) -> list[tuple[int, bytes]]:
    """Records of the `vectors` topic, each with its partition, of what chunks tell to forget; behind all vectors that
    came before.
    """
    return [
        (
            partition_of(chunk.forgotten, partitions),
            Vectors(version=topics.version, forgotten=chunk.forgotten).SerializeToString(),
        )
        for chunk in chunks
        if chunk.forgotten
    ]


def pack_vectors(vectors: dict[bytes, bytes], topics: Topics, partitions: int) -> list[tuple[int, bytes]]:
    """Records of the `vectors` topic, each with its partition: half a megabyte at most each."""
    by_partition: dict[int, list[bytes]] = {}
    for fingerprint in vectors:
        by_partition.setdefault(partition_of(fingerprint, partitions), []).append(fingerprint)
    records: list[tuple[int, bytes]] = []
    for partition, fingerprints in by_partition.items():
        size = len(vectors[fingerprints[0]])
        at_once = max(1, _VECTORS_BYTES_MAX // size)
        for start in range(0, len(fingerprints), at_once):
            some = fingerprints[start : start + at_once]
            message = Vectors(
                version=topics.version,
                dims=topics.form.dims_of(size),
                bits=topics.form.bits,
                fingerprints=b"".join(some),
                vectors=b"".join([vectors[fingerprint] for fingerprint in some]),
            )
            records.append((partition, message.SerializeToString()))
    return records
