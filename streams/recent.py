"""A bounded map from fingerprint to vector in RAM."""

from collections import OrderedDict

ENTRY_BYTES = 188
"""What Python takes to hold one vector beside its bytes, as `tracemalloc` counts it for keys of 16 bytes."""


class RecentVectors:
    """Vectors by fingerprint, up to a number of bytes; at the limit the least recently used go.

    Two use it: dedup as a tier before the table on disk, and the encoder to bridge the time from a vector's commit
    until dedup's table holds it.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._vectors: OrderedDict[bytes, bytes] = OrderedDict()  # a dict would scan its freed front on every eviction

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, fingerprint: bytes) -> bytes | None:
        """The vector, if it is held; it then counts as just used."""
        vector = self._vectors.get(fingerprint)
        if vector is not None:
            self._vectors.move_to_end(fingerprint)
        return vector

    def put(self, fingerprint: bytes, vector: bytes) -> None:
        """Hold a vector; at the limit the oldest go."""
        before = self._vectors.pop(fingerprint, None)
        self._bytes += len(vector) - len(before) if before is not None else len(vector) + ENTRY_BYTES
        self._vectors[fingerprint] = vector
        while self._bytes > self._bytes_max:
            _, oldest = self._vectors.popitem(last=False)
            self._bytes -= len(oldest) + ENTRY_BYTES

    def drop(self, fingerprint: bytes) -> None:
        """Hold it no longer."""
        vector = self._vectors.pop(fingerprint, None)
        if vector is not None:
            self._bytes -= len(vector) + ENTRY_BYTES

    def clear(self) -> None:
        """Hold nothing any longer."""
        self._vectors.clear()
        self._bytes = 0
