"""Packing posts into chunks, in either internal topic that carries them (`lookups`, `misses`)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from schemas.internal_pb2 import Chunk, Source

SourceKey = tuple[str, int]
"""Topic and partition that a post was read from."""


@dataclass(slots=True)
class ChunkBuilder:
    """Collects posts of one partition, each distinct content once, until the caller takes the chunk.

    `posts` and `content_bytes` tell the caller how full it is; the caller sets the limits.
    """

    fingerprints: list[bytes] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    sources: dict[SourceKey, int] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)
    post_sources: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    posted_ms: list[int] = field(default_factory=list)
    content_bytes: int = 0

    @property
    def posts(self) -> int:
        """How many posts it holds."""
        return len(self.ids)

    def add_content(self, fingerprint: bytes, text: bytes) -> int:
        """Add a content that is not in it yet; its index is what `add_post` takes."""
        self.fingerprints.append(fingerprint)
        self.texts.append(text)
        self.content_bytes += len(text)
        return len(self.texts) - 1

    def add_post(self, post_id: str, content: int, source: SourceKey, offset: int, posted_ms: int) -> None:
        """Add a post with the content of that index."""
        index = self.sources.get(source)
        if index is None:
            index = self.sources[source] = len(self.sources)
        self.ids.append(post_id)
        self.contents.append(content)
        self.post_sources.append(index)
        self.offsets.append(offset)
        self.posted_ms.append(posted_ms)

    def build(self, version: str, sources: Iterable[Source]) -> Chunk:
        """The chunk; `sources` stand in the order in which `self.sources` met them."""
        return Chunk(
            version=version,
            sources=sources,
            fingerprints=b"".join(self.fingerprints),
            texts=self.texts,
            ids=self.ids,
            contents=self.contents,
            post_sources=self.post_sources,
            offsets=self.offsets,
            posted_ms=self.posted_ms,
        )


def rekey(chunk: Chunk, fingerprint: Callable[[bytes], bytes], version: str) -> None:
    """Change a chunk in place into one of another version."""
    chunk.fingerprints = b"".join([fingerprint(text) for text in chunk.texts])
    chunk.version = version
