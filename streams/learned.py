"""What records of `vectors`, a table's changelog, tell it."""

import logging
from dataclasses import dataclass, field
from typing import Self

from google.protobuf.message import DecodeError

from schemas.content import split_fingerprints
from schemas.internal_pb2 import Vectors
from streams.table import Table

_log = logging.getLogger("manyray.table")


@dataclass(slots=True)
class Learned:
    """Vectors by fingerprint, and fingerprints of which nothing before them counts."""

    vectors: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    forgotten: set[bytes] = field(default_factory=set[bytes])
    copied: bool = False
    """Whether who follows the records had these vectors before."""

    @classmethod
    def of(cls, record: bytes | None, version: str) -> Self:
        """What a record holds for a version: nothing if it is another version's, or no such record.

        The table is a cache, so what it cannot learn costs compute only.
        """
        try:
            message = Vectors.FromString(record or b"")
        except DecodeError:
            message = Vectors(version=version)  # of none, which is told below
        if message.version != version:
            return cls()
        fingerprints, blob = split_fingerprints(message.fingerprints), message.vectors
        forgotten = set(split_fingerprints(message.forgotten))
        size = message.dims * (message.bits or 32) // 8
        if len(blob) != size * len(fingerprints) or not (blob or forgotten):
            _log.warning("a record of %d bytes in the vectors topic holds no vectors: left out", len(record or b""))
            return cls()
        vectors = {each: blob[index * size : (index + 1) * size] for index, each in enumerate(fingerprints)}
        return cls(vectors, forgotten, message.copied)

    def take(self, later: "Learned") -> None:
        """Take what a later record holds too."""
        for fingerprint in later.forgotten:
            self.vectors.pop(fingerprint, None)
        self.forgotten |= later.forgotten
        self.vectors.update(later.vectors)

    def put_into(self, table: Table, offset: int) -> None:
        """Tell a table, and with it the next offset to read."""
        if self.forgotten:
            table.forget_many(list(self.forgotten))
        table.put_many(self.vectors, offset)
