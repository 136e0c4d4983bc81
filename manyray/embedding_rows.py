"""Embeddings as rows of Parquet: which records are of a version's kind, their columns, and files of them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from google.protobuf.message import DecodeError

from manyray.arrow import arrow, parquet
from manyray.whole_file import whole_file
from schemas.embedding import DTYPES, form_of, origin_name
from schemas.public_pb2 import Embedding
from schemas.vectors import VectorForm

GROUP_BYTES = 16 * 2**20
"""Of a row group, about: what is held in memory, a few times, while it is encoded."""
_FINGERPRINT_BYTES = 16

_KIND_FIELDS = ("ray", "version", "dtype", "dims", "scale")
_ROW_FIELDS = (
    *("post_id", "vector", "fingerprint", "source_topic", "source_partition", "source_offset"),
    *("origin", "job", "posted_ms", "embedded_ms"),
)
_VECTOR, _FINGERPRINT = _ROW_FIELDS.index("vector"), _ROW_FIELDS.index("fingerprint")
_REPEATED = ["source_topic", "source_partition", "origin", "job"]
_NUMBERS = "vector.list.element"
"""The vector's numbers, as Parquet names the column that holds them."""

_fields_of = attrgetter(*_KIND_FIELDS, *_ROW_FIELDS)  # one call a record, and no loop over its fields
Row = tuple[Any, ...]
"""The `_ROW_FIELDS` of a record."""


class Batch(Protocol):
    """A `pyarrow.RecordBatch`."""

    num_rows: int
    nbytes: int


class Kind(msgspec.Struct, frozen=True):
    """What all embeddings of a version have in common. output: one of `schemas.vectors.OUTPUTS`."""

    ray: str
    version: str
    dims: int
    output: str = "float32"
    scale: float = 0.0

    @property
    def form(self) -> VectorForm:
        """How their records store a vector."""
        return VectorForm(self.output, self.scale)


def commonest_kind(values: Iterable[bytes], ray: str, version: str) -> Kind | None:
    """The kind of most embeddings of a version among some records; None if there is no such record."""
    kinds = Counter(
        Kind(ray, version, one.dims, form.output, form.scale)
        for one in map(_decoded, values)
        if one is not None and (one.ray, one.version) == (ray, version) and (form := form_of(one)) is not None
    )
    return kinds.most_common(1)[0][0] if kinds else None


def rows_of(values: Iterable[bytes], kind: Kind) -> list[Row]:
    """The records that are embeddings of a kind, in their order: what `batch_of` takes. All others are left out."""
    own = (kind.ray, kind.version, DTYPES[kind.output], kind.dims, kind.scale)
    vector_bytes = kind.dims * kind.form.bits // 8
    rows = [
        fields[len(own) :]
        for one in map(_decoded, values)
        if one is not None and (fields := _fields_of(one))[: len(own)] == own
    ]
    return [row for row in rows if len(row[_VECTOR]) == vector_bytes and len(row[_FINGERPRINT]) == _FINGERPRINT_BYTES]


def batch_of(rows: Sequence[Row], kind: Kind) -> Batch:
    """Rows of a kind, at least one, as columns.

    Vectors are lists of `dims` numbers: float16 as it is, all others float32, as `schemas.embedding.vectors_of` has
    them (int8 times its scale, binary -1 and 1).
    """
    schema = _schema_of(kind)
    columns: dict[str, Any] = dict(zip(_ROW_FIELDS, zip(*rows, strict=True), strict=True))
    vectors = kind.form.unpack(b"".join(columns["vector"]), len(rows)).astype(_number_type(kind), copy=False)
    columns["vector"] = arrow.FixedSizeListArray.from_arrays(
        arrow.array(vectors.ravel()), type=schema.field("vector").type
    )
    columns["origin"] = [origin_name(origin) for origin in columns["origin"]]
    return arrow.record_batch(columns, schema=schema)


def write_rows(path: Path, batches: Iterator[Batch]) -> bool:
    """Write batches of one kind into a file, in bounded memory; says whether there were any: else there is no file.

    Raises:
        OSError: it cannot be written.
    """
    groups = _groups(batches)
    first = next(groups, None)
    if first is None:
        return False
    with whole_file(path) as file, parquet.ParquetWriter(file, first.schema, **_encoding_of(first.schema)) as writer:
        for group in chain([first], groups):
            writer.write_table(group, row_group_size=len(group))
    return True


def _decoded(value: bytes) -> Embedding | None:
    try:
        return Embedding.FromString(value)
    except DecodeError:
        return None


def _number_type(kind: Kind) -> np.dtype[Any]:
    return np.dtype(np.float16 if kind.output == "float16" else np.float32)


def _schema_of(kind: Kind) -> Any:
    instant = arrow.timestamp("ms", tz="UTC")
    types = (
        *(arrow.string(), arrow.list_(arrow.from_numpy_dtype(_number_type(kind)), kind.dims)),
        *(arrow.binary(_FINGERPRINT_BYTES), arrow.string(), arrow.int32(), arrow.int64()),
        *(arrow.string(), arrow.string(), instant, instant),
    )
    about = {"ray": kind.ray, "version": kind.version, "dtype": kind.output, "scale": str(kind.scale)}
    fields = [arrow.field(name, type_) for name, type_ in zip(_ROW_FIELDS, types, strict=True)]
    return arrow.schema(fields, metadata={f"manyray.{name}": value for name, value in about.items()})


def _encoding_of(schema: Any) -> dict[str, Any]:
    """Few distinct numbers are kept as their places among these, which is as small as the records are; float32's bytes
    are kept apart, which compresses best. Of float16 not every reader knows that.
    """
    output = schema.metadata[b"manyray.dtype"]
    return {
        "compression": "zstd",
        "use_dictionary": [*_REPEATED, _NUMBERS] if output in (b"int8", b"binary") else _REPEATED,
        "use_byte_stream_split": [_NUMBERS] if output == b"float32" else False,
        "write_statistics": [name for name in _ROW_FIELDS if name != "vector"],
    }


def _groups(batches: Iterable[Batch]) -> Iterator[Any]:
    """Tables of some batches each, about `GROUP_BYTES` large."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if sum(one.nbytes for one in group) >= GROUP_BYTES:
            yield arrow.Table.from_batches(group)
            group = []
    if group:
        yield arrow.Table.from_batches(group)
