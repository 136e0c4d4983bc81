"""What an encoding of a file has done so far: segments on disk, each whole or not there, so that a run may be ended.

A segment is two files, vectors and what belongs to them, of which the second is written last and renamed into place. A
run that goes on reads its input from the begin and compares each segment's digest: other posts are told, not mixed.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from manyray.whole_file import whole_file
from schemas.errors import Fatal

Stored = npt.NDArray[Any]


class Rejection(msgspec.Struct, frozen=True):
    """A post without a vector: its place in the segment, and why."""

    index: int
    reason: str
    detail: str


class Segment(msgspec.Struct, frozen=True):
    """Some posts in the order of the file. ids: of all of them; rejected: those without a vector.

    digest: of their texts. distinct: how many contents were computed for them.
    """

    ids: list[str]
    rejected: list[Rejection]
    digest: str
    distinct: int


class Segments:
    """The folder of a run's segments; what they were made with stands in it, and another run's is refused."""

    def __init__(self, folder: Path, made_with: dict[str, Any]) -> None:
        """Create the folder, or go on with it.

        Raises:
            Fatal: it is of another run, or cannot be written.
        """
        self.folder = folder
        kept = folder / "run.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not kept.exists():
                _write(kept, msgspec.json.encode(made_with))
            before = msgspec.json.decode(kept.read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            raise Fatal(f"{folder} cannot be used to keep what is done: {error}: remove it, or name another") from None
        if other := [name for name, value in made_with.items() if before.get(name) != value]:
            raise Fatal(f"{folder} is of a run with another {', '.join(other)}: remove it, or do as that run did")
        self.count = 0
        """Whole segments."""
        while self._about(self.count).exists():
            self.count += 1

    def check(self, number: int, texts: Sequence[str]) -> Segment:
        """A segment that is done, having seen that it is of these texts.

        Raises:
            Fatal: it is of others.
        """
        segment = self.read(number)
        if segment.digest != digest_of(texts):
            raise Fatal(f"the posts are not those of which {self.folder} has vectors: remove it, or name the same file")
        return segment

    def read(self, number: int) -> Segment:
        """What belongs to the vectors of a segment."""
        return msgspec.json.decode(self._about(number).read_bytes(), type=Segment)

    def vectors(self, number: int) -> Stored:
        """The vectors of a segment, a row a post; those of rejected posts are NaN, or 0 in a type that has none."""
        return np.load(self._vectors(number), allow_pickle=False)

    def add(self, segment: Segment, vectors: Stored) -> None:
        """Keep the next segment.

        Raises:
            Fatal: it cannot be written.
        """
        try:
            with self._vectors(self.count).open("wb") as file:
                write_npy_header(file, vectors, len(vectors))
                file.write(vectors.tobytes())  # numpy's own way of writing does not say why it fails
                file.flush()
                os.fsync(file.fileno())
            _write(self._about(self.count), msgspec.json.encode(segment))
        except OSError as error:
            raise Fatal(
                f"{self.folder} cannot be written ({error.strerror}): what is done is kept, run it again"
            ) from None
        self.count += 1

    def remove(self) -> None:
        """Delete the folder: its vectors are elsewhere now."""
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()

    def _about(self, number: int) -> Path:
        return self.folder / f"{number:06}.json"

    def _vectors(self, number: int) -> Path:
        return self.folder / f"{number:06}.npy"


def write_npy_header(file: BinaryIO, like: Stored, rows: int) -> None:
    """Begin an `.npy` file of so many rows as `like` has."""
    shape = (rows, *like.shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(like.dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def digest_of(texts: Sequence[str]) -> str:
    """Of texts in their order; no two lists have the same."""
    state = hashlib.blake2b(digest_size=16)
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        state.update(len(raw).to_bytes(8, "little") + raw)
    return state.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    with whole_file(path) as file:
        file.write(content)
