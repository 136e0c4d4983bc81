"""Posts into chunks: the pure part of ingest. Knows neither clients nor transactions."""

from collections.abc import Callable
from dataclasses import dataclass, field

from schemas.chunk import ChunkBuilder, Place
from schemas.content import normalise, partition_of
from schemas.post import Post

CHUNK_BYTES_MAX = 512 * 1024
"""A chunk is closed past this. The largest post on top is 256 KiB, which NFC may triple: together under 2 MiB."""


@dataclass(slots=True, eq=False)
class Packer:
    """Packs posts of one lane into chunks by the partition of their content's hash.

    A content that repeats within a chunk is normalised and hashed once. `full` collects closed chunks;
    memory is bounded by how many posts the caller adds before `take`.
    """

    hash_of: Callable[[bytes], bytes]
    partitions: int
    chunk_posts_max: int
    is_backfill: bool = False
    job: str = ""
    """The replay that the posts are of; empty for posts as they come."""
    share: float = 0.0
    """Of the encoder's time, which the misses may take at most; 0 for all of it."""
    contents: int = 0
    """How many were normalised so far."""
    full: list[tuple[int, ChunkBuilder]] = field(default_factory=list[tuple[int, ChunkBuilder]])
    _open: dict[int, ChunkBuilder] = field(default_factory=dict[int, ChunkBuilder])
    _known: dict[str, tuple[int, ChunkBuilder, int]] = field(default_factory=dict[str, tuple[int, ChunkBuilder, int]])
    _deleted: set[str] = field(default_factory=set[str])
    """The posts whose deletion waits for a chunk, which comes after all posts so far."""
    _deletions: ChunkBuilder | None = None

    def add(self, post: Post, source: Place, offset: int, posted_ms: int) -> None:
        """Add one post from `offset` of `source`."""
        if self._deleted and post.id in self._deleted:
            self._close_all()
        known = self._known.get(post.text)
        if known is None or self._open.get(known[0]) is not known[1]:
            known = self._known[post.text] = self._place(post.text)
        partition, builder, content = known
        builder.add_post(post.id, content, source, offset, posted_ms)
        if builder.posts >= self.chunk_posts_max or builder.size_bytes >= CHUNK_BYTES_MAX:
            self._close(partition)

    def delete(self, post_id: str, source: Place, offset: int) -> None:
        """Add that the record at `offset` of `source` deletes a post: for all partitions, as any may have had it."""
        if self._deletions is None:
            self._deletions = self._begin()
        self._deletions.add_deletion(post_id, source, offset)
        self._deleted.add(post_id)
        if len(self._deletions.deletions) >= self.chunk_posts_max or self._deletions.size_bytes >= CHUNK_BYTES_MAX:
            self._close_all()

    def take(self) -> list[tuple[int, ChunkBuilder]]:
        """All chunks, closed now, with the partition of each, in the order in which they were closed."""
        self._close_all()
        self._known.clear()
        taken, self.full = self.full, []
        return taken

    def _place(self, text: str) -> tuple[int, ChunkBuilder, int]:
        content = normalise(text).encode()
        self.contents += 1
        hashed = self.hash_of(content)
        partition = partition_of(hashed, self.partitions)
        builder = self._open.get(partition)
        if builder is None:
            builder = self._open[partition] = self._begin()
        return partition, builder, builder.add_content(hashed, content)

    def _begin(self) -> ChunkBuilder:
        return ChunkBuilder(is_backfill=self.is_backfill, job=self.job, share=self.share)

    def _close_all(self) -> None:
        """Close the chunks that are open, and behind them those of the deletions that wait."""
        for partition in list(self._open):
            self._close(partition)
        if self._deletions is not None:
            self.full += [(partition, self._deletions) for partition in range(self.partitions)]
            self._deletions = None
            self._deleted.clear()

    def _close(self, partition: int) -> None:
        self.full.append((partition, self._open.pop(partition)))
