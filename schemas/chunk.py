"""Packing posts into chunks, in either internal topic that carries them (`lookups`, `misses`)."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from schemas.content import FINGERPRINT_BYTES, is_in_share, split_fingerprints
from schemas.errors import Fatal
from schemas.internal_pb2 import Chunk, Deletion, Source, Standing

_CONTENT_BYTES = 24  # a fingerprint, and tag and length of the text
_DELETION_BYTES = 24  # its numbers, and tags and lengths
_POST_BYTES = 40  # the number columns, and tag and length of the id

Place = tuple[str, int]
"""A topic and the number of one of its partitions."""


@dataclass(slots=True)
class ChunkBuilder:
    """Collects posts of one partition, each distinct content once, until the caller takes the chunk.

    `posts` and `size_bytes` tell the caller how full it is; the caller sets the limits.
    """

    fingerprints: dict[bytes, int] = field(default_factory=dict[bytes, int])
    texts: list[bytes] = field(default_factory=list)
    sources: dict[Place, int] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)
    post_sources: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    posted_ms: list[int] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list[Deletion])
    is_backfill: bool = False
    job: str = ""
    """The replay that its posts are of; empty for posts as they come."""
    share: float = 0.0
    """Of the encoder's time, which its misses may take at most; 0 for all of it."""
    size_bytes: int = 0
    """About the size of the chunk when serialised, its sources (up to 300 bytes each) not counted."""

    @property
    def posts(self) -> int:
        """How many posts it holds."""
        return len(self.ids)

    def add_content(self, fingerprint: bytes, text: bytes) -> int:
        """Add a content unless it is in it already; its index is what `add_post` takes."""
        index = self.fingerprints.get(fingerprint)
        if index is None:
            index = self.fingerprints[fingerprint] = len(self.texts)
            self.texts.append(text)
            self.size_bytes += len(text) + _CONTENT_BYTES
        return index

    def add_post(self, post_id: str, content: int, source: Place, offset: int, posted_ms: int) -> None:
        """Add a post with the content of that index."""
        self.post_sources.append(self._source(source))
        self.ids.append(post_id)
        self.size_bytes += (len(post_id) if post_id.isascii() else len(post_id.encode())) + _POST_BYTES
        self.contents.append(content)
        self.offsets.append(offset)
        self.posted_ms.append(posted_ms)

    def add_deletion(self, post_id: str, source: Place, offset: int) -> None:
        """Add that a post was deleted; a chunk holds either posts or these."""
        self.deletions.append(Deletion(id=post_id, source=self._source(source), offset=offset))
        self.size_bytes += len(post_id.encode()) + _DELETION_BYTES

    def build(
        self, version: str, sources: Iterable[Source] | None = None, *, standings: Sequence[Standing] = ()
    ) -> Chunk:
        """The chunk; `sources`, if they are more than places, stand in the order in which `self.sources` met them."""
        if sources is None:
            sources = [Source(topic=topic, partition=partition, job=self.job) for topic, partition in self.sources]
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
            backfill=self.is_backfill,
            share=self.share,
            standings=standings,
            deletions=self.deletions,
        )

    def _source(self, source: Place) -> int:
        """The index of a source, which is added if need be."""
        index = self.sources.get(source)
        if index is None:
            index = self.sources[source] = len(self.sources)
        return index


def parse_chunk(value: bytes | None, place: str, *, accept_gaps: bool = False) -> Chunk:
    """The chunk in a record of `place` (topic, partition, offset).

    Raises:
        Fatal: it is none; with `accept_gaps` it counts as an empty one.
    """
    with suppress(DecodeError):
        chunk = Chunk.FromString(value or b"")
        if _is_whole(chunk):
            return chunk
    if accept_gaps:
        return Chunk()
    raise Fatal(
        f"{place} holds no chunk: another program writes to a topic that is Manyray's own; stop it, and set "
        "accept_gaps = true to pass over what it wrote"
    )


def _is_whole(chunk: Chunk) -> bool:
    """Whether its columns agree: other messages parse as a chunk too, as Protobuf passes over what it does not know."""
    contents, posts = len(chunk.texts), len(chunk.ids)
    columns = (chunk.contents, chunk.post_sources, chunk.offsets, chunk.posted_ms)
    return (
        len(chunk.fingerprints) == contents * FINGERPRINT_BYTES
        and len(chunk.forgotten) % FINGERPRINT_BYTES == 0
        and all(len(column) == posts for column in columns)
        and len(set(chunk.contents)) == contents == max(chunk.contents, default=-1) + 1
        and max(chunk.post_sources, default=-1) < len(chunk.sources)
        and max((each.source for each in chunk.deletions), default=-1) < len(chunk.sources)
    )


def key_by(chunk: Chunk, fingerprints: Callable[[bytes], bytes], version: str) -> None:
    """Change a chunk of `lookups` in place into a version's own, by what makes its fingerprints of hashes."""
    chunk.fingerprints = fingerprints(chunk.fingerprints)
    chunk.forgotten = fingerprints(chunk.forgotten)
    chunk.version = version


def sample(chunk: Chunk, share: float) -> Chunk:
    """The chunk of those posts of a chunk of `lookups` whose contents are in a share of all."""
    hashes = split_fingerprints(chunk.fingerprints)
    is_in = [is_in_share(each, share) for each in hashes]
    return select(chunk, hashes, [post for post, its in enumerate(chunk.contents) if is_in[its]]).build(chunk.version)


def select(chunk: Chunk, fingerprints: list[bytes], posts: list[int]) -> ChunkBuilder:
    """A chunk of some of a chunk's posts, by index; contents they share are in it once."""
    job = chunk.sources[0].job if chunk.sources else ""
    builder = ChunkBuilder(is_backfill=chunk.backfill, job=job, share=chunk.share)
    sources = [(source.topic, source.partition) for source in chunk.sources]
    for post in posts:
        content = chunk.contents[post]
        builder.add_post(
            chunk.ids[post],
            builder.add_content(fingerprints[content], chunk.texts[content]),
            sources[chunk.post_sources[post]],
            chunk.offsets[post],
            chunk.posted_ms[post],
        )
    return builder


def part_of(chunk: Chunk, content: int) -> Chunk:
    """The chunk of one content of a chunk, by index, and its posts."""
    posts = [post for post, its in enumerate(chunk.contents) if its == content]
    part = select(chunk, split_fingerprints(chunk.fingerprints), posts)
    return part.build(chunk.version, standings=chunk.standings)
