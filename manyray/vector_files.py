"""Files of vectors: `.npy`, Parquet and JSONL, each written beside its name and then renamed."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from manyray.segments import Segments, Stored, write_npy_header
from manyray.whole_file import whole_file
from schemas.errors import Fatal

Parts = Iterator[tuple[list[str], Stored]]
Writer = Callable[[BinaryIO, Segments, Stored, Mapping[str, str]], None]


def writer_of(path: Path) -> Writer:
    """What writes a file of that suffix.

    Raises:
        Fatal: nothing does, or the library for it is missing.
    """
    found = {".npy": _write_npy, ".parquet": _write_parquet, ".jsonl": _write_jsonl}.get(path.suffix.lower())
    if found is None:
        raise Fatal(f"{path} is of no known kind: name it .npy, .parquet or .jsonl")
    if found is _write_parquet:
        import manyray.arrow  # noqa: F401, PLC0415  # pyright: ignore[reportUnusedImport] - not everybody has it
    return found


def write_file(path: Path, segments: Segments, none: Stored, about: Mapping[str, str]) -> None:
    """Write all segments into one file: it has its name once it is whole.

    none: no vectors (0, columns), of the type of all. about: what a reader may want to know, if there is room for it.

    Raises:
        Fatal: it cannot be written.
    """
    try:
        with whole_file(path) as file:
            writer_of(path)(file, segments, none, about)
    except OSError as error:
        raise Fatal(f"{path} cannot be written ({error.strerror}): run it again, nothing is computed twice") from None


def _write_npy(file: BinaryIO, segments: Segments, none: Stored, about: Mapping[str, str]) -> None:
    """A row a post, in the order of the input, and no ids."""
    rows = sum(len(segments.read(number).ids) for number in range(segments.count))
    write_npy_header(file, none, rows)
    for number in range(segments.count):
        file.write(segments.vectors(number).tobytes())


def _write_parquet(file: BinaryIO, segments: Segments, none: Stored, about: Mapping[str, str]) -> None:
    """Columns id and vector, of the posts that have one."""
    from manyray.arrow import arrow, parquet  # noqa: PLC0415 - not everybody has it

    kind = arrow.list_(arrow.from_numpy_dtype(none.dtype), none.shape[1])
    fields = [arrow.field("id", arrow.string()), arrow.field("vector", kind)]
    schema = arrow.schema(fields, metadata={f"manyray.{name}": value for name, value in about.items()})
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for ids, vectors in _embedded(segments):
            flat = arrow.array(np.ascontiguousarray(vectors).ravel())
            lists = arrow.FixedSizeListArray.from_arrays(flat, none.shape[1])
            writer.write_table(arrow.table([arrow.array(ids, arrow.string()), lists], schema=schema))


def _write_jsonl(file: BinaryIO, segments: Segments, none: Stored, about: Mapping[str, str]) -> None:
    """An object a line with id and vector, of the posts that have one."""
    encode = msgspec.json.Encoder().encode
    for ids, vectors in _embedded(segments):
        lines: list[dict[str, Any]] = [
            {"id": one, "vector": row} for one, row in zip(ids, vectors.tolist(), strict=True)
        ]
        file.write(b"\n".join(map(encode, lines)) + b"\n" if lines else b"")


def _embedded(segments: Segments) -> Parts:
    """The posts of each segment that have a vector."""
    for number in range(segments.count):
        segment, vectors = segments.read(number), segments.vectors(number)
        bad = {one.index for one in segment.rejected}
        good = [index for index in range(len(segment.ids)) if index not in bad]
        yield [segment.ids[index] for index in good], vectors[good]
