"""The output records of posts whose vector the table held."""

from collections.abc import Iterator

from schemas.content import split_fingerprints
from schemas.embedding import EmbeddingParts
from schemas.internal_pb2 import Chunk
from streams.dedup import Actions
from streams.transactions import KeyValue


def embed_hits(chunk: Chunk, actions: Actions, head: bytes, parts: EmbeddingParts) -> Iterator[KeyValue]:
    """The output records of a chunk's hits, key and value each."""
    if not actions.hits:
        return
    fingerprints = split_fingerprints(chunk.fingerprints)
    sources = [head + parts.source(source.topic, source.partition, source.job) for source in chunk.sources]
    contents = [
        parts.content(fingerprint, vector) if vector is not None else b""
        for fingerprint, vector in zip(fingerprints, actions.vectors, strict=True)
    ]
    # Lists are read faster than Protobuf's repeated fields, and each is read once a post.
    ids, places, origins = list(chunk.ids), list(chunk.contents), list(chunk.post_sources)
    offsets, posted_ms, post = list(chunk.offsets), list(chunk.posted_ms), parts.post
    for index in actions.hits:
        own = post(ids[index], offsets[index], posted_ms[index])
        yield ids[index].encode(), b"".join((sources[origins[index]], contents[places[index]], own))
