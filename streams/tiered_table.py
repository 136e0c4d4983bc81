"""A bounded tier in RAM before a table."""

from streams.recent import RecentVectors
from streams.table import Table


class TieredTable:
    """A table whose recently used vectors are found in RAM; see `Table` for the methods."""

    def __init__(self, below: Table, ram_bytes: int) -> None:
        """`ram_bytes` bounds the vectors held; 0 passes everything through."""
        self._below = below
        self._recent = RecentVectors(ram_bytes)

    def get_many(self, fingerprints: list[bytes]) -> list[bytes | None]:
        """From RAM, and what is not there from below, in one call."""
        found = [self._recent.get(fingerprint) for fingerprint in fingerprints]
        missing = [index for index, vector in enumerate(found) if vector is None]
        if missing:
            below = self._below.get_many([fingerprints[index] for index in missing])
            for index, vector in zip(missing, below, strict=True):
                if vector is not None:
                    found[index] = vector
                    self._recent.put(fingerprints[index], vector)
        return found

    def put_many(self, vectors: dict[bytes, bytes], offset: int) -> None:
        """Below first: what is in RAM is also there."""
        self._below.put_many(vectors, offset)
        for fingerprint, vector in vectors.items():
            self._recent.put(fingerprint, vector)

    def forget_many(self, fingerprints: list[bytes]) -> None:
        """Below, and in RAM."""
        self._below.forget_many(fingerprints)
        for fingerprint in fingerprints:
            self._recent.drop(fingerprint)

    @property
    def offset(self) -> int:
        """The offset last stored below."""
        return self._below.offset

    def entries(self) -> int:
        """Those below: RAM holds copies."""
        return self._below.entries()

    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self._below.size_bytes()

    def close(self) -> None:
        """Close the table below."""
        self._below.close()
