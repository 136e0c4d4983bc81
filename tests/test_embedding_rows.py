"""Laws of embeddings as rows of Parquet: what a record says comes back, and what is no such record is left out."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from manyray.embedding_rows import GROUP_BYTES, Batch, Kind, batch_of, commonest_kind, rows_of, write_rows
from schemas.embedding import EmbeddingParts, form_of
from schemas.internal_pb2 import Standing
from schemas.public_pb2 import CACHED, COMPUTED, FLOAT32, Embedding
from schemas.vectors import OUTPUTS, VectorForm

DIMS = 16
RAY, VERSION = "textray", "0123456789ab"
FORMS = [VectorForm("int8", 0.25) if output == "int8" else VectorForm(output) for output in OUTPUTS]
KIND = Kind(RAY, VERSION, DIMS)


def record(form: VectorForm = FORMS[0], **fields: object) -> Embedding:
    """An embedding of the version, unless told otherwise, whose vector is its offset's own."""
    offset = int(str(fields.get("source_offset", 0)))
    vector = form.pack(np.random.default_rng(offset).standard_normal((1, DIMS), np.float32)).tobytes()
    parts = EmbeddingParts(RAY, VERSION, form)
    own = Embedding(**fields).SerializeToString()
    whole = parts.head(COMPUTED, 5, Standing()) + parts.content(bytes(16), vector) + own
    return Embedding.FromString(whole)


def kind_of(form: VectorForm) -> Kind:
    """That of `record`."""
    return Kind(RAY, VERSION, DIMS, form.output, form.scale)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
instants = st.integers(0, 2**42)
embeddings = st.builds(
    record,
    st.just(FORMS[0]),
    post_id=texts,
    fingerprint=st.binary(min_size=16, max_size=16),
    source_topic=texts,
    source_partition=st.integers(0, 2**31 - 1),
    source_offset=st.integers(0, 2**62),
    origin=st.sampled_from([COMPUTED, CACHED]),
    job=texts,
    posted_ms=instants,
    embedded_ms=instants,
)


@given(st.lists(embeddings, min_size=1, max_size=20))
def test_every_field_comes_back(records: list[Embedding]):
    """A row a record, in their order; times are instants, the origin is a word."""
    rows = rows_of([one.SerializeToString() for one in records], KIND)
    for row, one in zip(batch_of(rows, KIND).to_pylist(), records, strict=True):  # type: ignore[attr-defined]
        assert row["vector"] == np.frombuffer(one.vector, "<f4").tolist()
        assert row["origin"] == {COMPUTED: "computed", CACHED: "cached"}[one.origin]
        for name in ("posted_ms", "embedded_ms"):
            assert row[name] == datetime.fromtimestamp(0, UTC) + np.timedelta64(getattr(one, name), "ms").item()
        for name in ("post_id", "fingerprint", "source_topic", "source_partition", "source_offset", "job"):
            assert row[name] == getattr(one, name)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.output)
def test_vectors_are_numbers_whatever_they_were_stored_as(form: VectorForm, tmp_path: Path):
    """float16 as it is, the others float32, in a file no larger than their records; it says what they are of."""
    count = 2_000
    values = [record(form, source_offset=number).SerializeToString() for number in range(count)]
    kind = commonest_kind(values, RAY, VERSION)
    assert kind == kind_of(form)
    path = tmp_path / "out.parquet"
    assert write_rows(path, iter([batch_of(rows_of(values, kind), kind)]))
    table = parquet.read_table(path)
    stored = b"".join(Embedding.FromString(value).vector for value in values)
    found = np.array(table["vector"].to_pylist(), np.float32)
    assert np.array_equal(found, form.unpack(stored, count))
    assert str(table.schema.field("vector").type.value_type) == ("halffloat" if form.output == "float16" else "float")
    assert table.schema.field("vector").type.list_size == DIMS
    about = {"ray": RAY, "version": VERSION, "dtype": form.output, "scale": str(form.scale)}
    assert table.schema.metadata == {f"manyray.{name}".encode(): value.encode() for name, value in about.items()}
    numbers = parquet.ParquetFile(path).metadata.row_group(0).column(1)
    assert numbers.path_in_schema == "vector.list.element"
    assert numbers.total_compressed_size < 1.1 * len(stored)


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(range(8))), max_size=30))
def test_what_is_no_embedding_of_the_kind_is_left_out(others: list[bytes | int]):
    """Its neighbours come out, in their order, and nothing else does."""
    own = record(source_offset=1)
    strange = [
        record(ray="other"),
        record(version="other"),
        record(dims=DIMS + 1),
        record(vector=own.vector[1:]),
        record(vector=own.vector * 2, dims=2 * DIMS),
        record(FORMS[1]),
        record(fingerprint=b"short"),
        record(scale=0.5),
    ]
    values: list[bytes] = []
    for number, other in enumerate(others):
        values.append(other if isinstance(other, bytes) else strange[other].SerializeToString())
        values.append(record(source_offset=number).SerializeToString())
    rows = rows_of(values, KIND)
    assert [row[5] for row in rows] == list(range(len(others)))
    if rows:
        assert batch_of(rows, KIND).num_rows == len(others)


def test_the_kind_is_that_of_most_records():
    """Of the version; there is none where none is an embedding of it."""
    wide = record(dims=2 * DIMS, vector=bytes(8 * DIMS)).SerializeToString()
    own, other = record().SerializeToString(), record(version="other").SerializeToString()
    assert commonest_kind([wide, own, b"{", *[other] * 5, own], RAY, VERSION) == KIND
    assert commonest_kind([wide, wide, own], RAY, VERSION) == Kind(RAY, VERSION, 2 * DIMS)
    assert commonest_kind([other, b"{", b""], RAY, VERSION) is None
    assert form_of(Embedding(ray=RAY, version=VERSION, dtype=FLOAT32)) is None
    assert (
        commonest_kind([Embedding(ray=RAY, version=VERSION, dtype=FLOAT32).SerializeToString()], RAY, VERSION) is None
    )


@pytest.fixture
def wide() -> Batch:
    """Eight rows, of which a few make a group."""
    dims = 65_536
    kind = Kind(RAY, VERSION, dims)
    value = record(dims=dims, vector=bytes(4 * dims)).SerializeToString()
    return batch_of(rows_of([value] * 8, kind), kind)


def test_a_file_is_written_group_by_group(wide: Batch, tmp_path: Path):
    """What is held of it is bounded, however long it gets: no more is asked for before a group is written."""
    a_group = -(-GROUP_BYTES // wide.nbytes)
    assert a_group > 1
    sizes: list[int] = []

    def batches() -> Iterator[Batch]:
        for number in range(3 * a_group + 1):
            if number > a_group:
                sizes.append((tmp_path / "_out.parquet.new").stat().st_size)
            yield wide

    assert write_rows(tmp_path / "out.parquet", batches())
    metadata = parquet.ParquetFile(tmp_path / "out.parquet").metadata
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert groups == [8 * a_group] * 3 + [8]
    assert len(set(sizes)) >= 2  # it grew while more was asked for


def test_no_rows_are_no_file(tmp_path: Path):
    """Whoever reads the folder then finds none that is empty."""
    assert not write_rows(tmp_path / "out.parquet", iter([]))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_leaves_nothing(wide: Batch, tmp_path: Path):
    """Neither under its name nor beside it."""

    def batches() -> Iterator[Batch]:
        yield from [wide] * (-(-GROUP_BYTES // wide.nbytes) + 1)
        assert (tmp_path / "_out.parquet.new").exists()
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_rows(tmp_path / "out.parquet", batches())
    assert list(tmp_path.iterdir()) == []
