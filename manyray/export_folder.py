"""The folder of an export: what was asked for, how far it is, and which files hold it."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from manyray.embedding_rows import Kind
from manyray.whole_file import whole_file
from schemas.errors import Fatal
from streams.jobs import Range

KEPT = "_export.json"
"""Names that begin with an underscore or a dot are no data to readers of a folder of Parquet."""


class Counts(msgspec.Struct, frozen=True):
    """What became of the records of an export. gone: offsets that retention removed before they were read."""

    embeddings: int = 0
    tombstones: int = 0
    strange: int = 0
    """Neither embeddings of the version nor tombstones."""
    gone: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        return Counts(*map(sum, pairs))


class Export(msgspec.Struct, frozen=True, rename={"start": "from", "end": "to"}):
    """What was asked for, as the offsets that it meant then, and how far it is: the next offset of each partition.

    kind: none before the first embedding was found. files: those that are whole, and how many rows each has.
    """

    topic: str
    start: str
    end: str
    asked_ms: int
    ranges: tuple[Range, ...]
    next_offsets: dict[int, int]
    kind: Kind | None = None
    counts: Counts = Counts()
    files: dict[str, int] = {}

    @property
    def offsets(self) -> int:
        """How many there are to be read: at least as many as records."""
        return sum(each.end - each.start for each in self.ranges)

    @property
    def offsets_left(self) -> int:
        """How many of them are not read yet."""
        return sum(each.end - self.next_offsets[each.partition] for each in self.ranges)


def file_name(partition: int, start: int) -> str:
    """Of the embeddings of a partition from an offset on."""
    return f"part-{partition}-{start}.parquet"


def find_export(folder: Path, topic: str, start: str, end: str) -> Export | None:
    """What a folder holds of an export of the same; None if it holds nothing.

    Raises:
        Fatal: it holds something else, lacks a file, or cannot be read.
    """
    kept = folder / KEPT
    try:
        names = {path.name for path in folder.iterdir() if path.name[0] not in "._"}
        export = msgspec.json.decode(kept.read_bytes(), type=Export) if kept.exists() else None
    except (OSError, msgspec.DecodeError) as error:
        raise Fatal(f"{kept} cannot be read ({error}): remove {folder}, or name another folder") from None
    if export is None:
        if names:
            raise Fatal(f"{folder} holds {min(names)}, and no export: name a new folder, or an empty one")
        return None
    if (export.topic, export.start, export.end) != (topic, start, end):
        raise Fatal(
            f"{folder} holds an export of {export.topic} from {export.start} to {export.end}, and not of {topic} from "
            f"{start} to {end}: ask for the same to go on with it, or name another folder"
        )
    if lost := export.files.keys() - names:
        raise Fatal(f"{folder} lacks {min(lost)}, which was written: put it back, or remove {folder} and begin anew")
    # A file may have got its name, and the process its end before it was written down: it is written again.
    next_ones = {file_name(partition, offset) for partition, offset in export.next_offsets.items()}
    if others := names - export.files.keys() - next_ones:
        raise Fatal(f"{folder} holds {min(others)}, which is not of its export: move it away, or name another folder")
    return export


def keep_export(folder: Path, export: Export) -> None:
    """Write down how far it is.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(folder / KEPT) as file:
        file.write(msgspec.json.format(msgspec.json.encode(export)))


@contextmanager
def claimed(folder: Path) -> Generator[None]:
    """Make a folder, and keep other exports out of it.

    Raises:
        Fatal: there is one, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Fatal(f"{folder} cannot be a folder of files ({error.strerror}): name another") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Fatal(f"another process exports into {folder}: wait for it, or name another folder") from None
    except OSError:  # a folder of a network may know no locks: then it is for the user to run one at a time
        pass
    try:
        yield
    finally:
        os.close(descriptor)
