"""The table: fingerprint to vector, for one partition. A cache of a pure function: losing it costs only compute."""

from collections.abc import Sequence
from typing import Protocol


class Table(Protocol):
    """What dedup needs of a table. Used by one thread at a time."""

    def get_many(self, fingerprints: list[bytes]) -> Sequence[bytes | None]:
        """The vector of each fingerprint, None where it has none."""
        ...

    def put_many(self, vectors: dict[bytes, bytes], offset: int) -> None:
        """Store vectors, and with them `offset`: the next one to read of the `vectors` topic."""
        ...

    def forget_many(self, fingerprints: list[bytes]) -> None:
        """Hold the vectors of these no longer."""
        ...

    @property
    def offset(self) -> int:
        """The offset last stored; 0 in a new table."""
        ...

    def entries(self) -> int:
        """About how many vectors it holds."""
        ...

    def size_bytes(self) -> int:
        """Bytes on disk."""
        ...

    def close(self) -> None:
        """Flush and release it."""
        ...


class MemoryTable:
    """A table in a dict: for tests and for trying things out."""

    def __init__(self) -> None:
        self._vectors: dict[bytes, bytes] = {}
        self.offset = 0

    def get_many(self, fingerprints: list[bytes]) -> list[bytes | None]:
        """See `Table`."""
        return [self._vectors.get(fingerprint) for fingerprint in fingerprints]

    def put_many(self, vectors: dict[bytes, bytes], offset: int) -> None:
        """See `Table`."""
        self._vectors.update(vectors)
        self.offset = offset

    def forget_many(self, fingerprints: list[bytes]) -> None:
        """See `Table`."""
        for fingerprint in fingerprints:
            self._vectors.pop(fingerprint, None)

    def entries(self) -> int:
        """See `Table`."""
        return len(self._vectors)

    def size_bytes(self) -> int:
        """See `Table`."""
        return 0

    def close(self) -> None:
        """See `Table`."""
