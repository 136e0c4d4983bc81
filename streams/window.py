"""A window: the chunks that the encoder computes and commits together. Pure; knows no client and no model."""

from dataclasses import dataclass, field

from schemas.content import split_fingerprints
from schemas.internal_pb2 import Chunk

_BYTES_A_TOKEN = 3
"""About, for text in the Latin script: it decides when a window is full, never what is computed."""


@dataclass(slots=True)
class Window:
    """Gathers chunks and their distinct contents."""

    first_s: float = 0.0
    chunks: list[Chunk] = field(default_factory=list[Chunk])
    next_offsets: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])
    texts: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    tokens: int = 0

    def add(self, chunk: Chunk, place: tuple[str, int], offset: int, now_s: float) -> None:
        """Add the chunk at `offset` of `place`, a topic and partition."""
        if not self.chunks:
            self.first_s = now_s
        self.chunks.append(chunk)
        self.next_offsets[place] = offset + 1
        for fingerprint, text in zip(split_fingerprints(chunk.fingerprints), chunk.texts, strict=True):
            if fingerprint not in self.texts:
                self.texts[fingerprint] = text
                self.tokens += 2 + len(text) // _BYTES_A_TOKEN

    @property
    def posts(self) -> int:
        """How many posts it holds."""
        return sum(len(chunk.ids) for chunk in self.chunks)

    def is_due(self, now_s: float, tokens: int, wait_s: float) -> bool:
        """Whether to compute it: it is full, or its oldest chunk has waited long enough."""
        return bool(self.chunks) and (self.tokens >= tokens or now_s - self.first_s >= wait_s)
