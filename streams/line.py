"""The line of chunks from one source partition: numbered, so that a reader sees a gap."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.errors import Fatal
from schemas.internal_pb2 import Source


@dataclass(frozen=True, slots=True)
class Line:
    """The last sequence that one source sent to each partition of `lookups`.

    It travels as the metadata of the ingest group's committed offset, so it is committed in the same transaction as
    the chunks that it numbers; a broker keeps 4,096 bytes of it by default, enough for 256 partitions.
    """

    epoch_ms: int
    sequences: tuple[int, ...]

    @classmethod
    def begin(cls, epoch_ms: int, partitions: int) -> "Line":
        """A new line, for a source without a record of an earlier one."""
        return cls(epoch_ms, (0,) * partitions)

    @classmethod
    def parse(cls, metadata: str | None, partitions: int) -> "Line | None":
        """Read what `str` wrote; None where there is nothing, or something else, or another partition count."""
        try:
            epoch, sequences = (metadata or "").split(":")
            line = cls(int(epoch), tuple(int(number) for number in sequences.split(",")))
        except ValueError:
            return None
        return line if len(line.sequences) == partitions else None

    def __str__(self) -> str:
        return f"{self.epoch_ms}:{','.join(str(number) for number in self.sequences)}"

    def after(self, sent: Sequence[int]) -> "Line":
        """The line after `sent[p]` more chunks to each partition p."""
        return Line(self.epoch_ms, tuple(old + new for old, new in zip(self.sequences, sent, strict=True)))


def is_repeat(seen: Source | None, new: Source) -> bool:
    """Whether a number was seen before: at least once, an ingest that died is followed by one that repeats some."""
    return seen is not None and (new.epoch_ms, new.sequence) <= (seen.epoch_ms, seen.sequence)


def follow(seen: Source | None, new: Source) -> None:
    """Check that a chunk is the next one of its line.

    Raises:
        Fatal: chunks between `seen` and `new` are missing, or `new` is older.
    """
    expected = seen.sequence + 1 if seen and seen.epoch_ms == new.epoch_ms else 1
    if (seen and new.epoch_ms < seen.epoch_ms) or new.sequence != expected:
        raise Fatal(
            f"chunks from {new.topic}/{new.partition} are missing before number {new.sequence} "
            f"(expected {expected}): the lookups topic lost them, check its retention.ms; "
            "to go on without those posts set accept_gaps = true"
        )
