"""Laws of how vectors are stored: what comes back is near, fixed by the version, and as large as it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schemas.embedding import EmbeddingParts, form_of, vectors_of
from schemas.internal_pb2 import Standing
from schemas.public_pb2 import BINARY, COMPUTED, FLOAT16, FLOAT32, INT8, Embedding
from schemas.vectors import OUTPUTS, VectorForm, suited_scale

FORMS = [VectorForm("int8", 0.01) if output == "int8" else VectorForm(output) for output in OUTPUTS]
numbers = st.floats(-1, 1, width=32)
matrices = st.tuples(st.integers(1, 9), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float32, (shape[0], 8 * shape[1]), elements=numbers)
)
STEPS = {"float32": 0.0, "float16": 2**-11, "int8": 0.005001, "binary": 2.0}
"""How far a number of at most 1 may be from what comes back."""


@given(matrices, st.sampled_from(FORMS))
def test_what_is_stored_comes_back_within_half_a_step(vectors, form):
    """float32 exactly, float16 and int8 to the nearest of theirs, binary with its sign; in dims x bits bits each."""
    stored = form.pack(vectors)
    blob = stored.tobytes()
    assert len(blob) * 8 == vectors.size * form.bits
    assert form.dims_of(len(blob) // len(vectors)) == vectors.shape[1]
    back = form.unpack(blob, len(vectors))
    assert back.dtype == np.float32
    assert back.shape == vectors.shape
    assert np.abs(back - vectors).max() <= STEPS[form.output]
    assert form.output != "binary" or np.array_equal(back > 0, vectors > 0)


@given(matrices, st.sampled_from(FORMS))
def test_a_vector_is_stored_as_it_is_alone(vectors, form):
    """No vector depends on its neighbours, as it would if a scale were found for each batch."""
    together = form.pack(vectors)
    assert all(np.array_equal(form.pack(row[None])[0], one) for row, one in zip(vectors, together, strict=True))


def test_what_is_out_of_range_is_the_nearest_in_it():
    """int8 stops at 127 steps to either side and float16 at 65,504; neither wraps round nor becomes infinite."""
    wide = np.array([[1e6, -1e6, 0.0]], np.float32)
    assert VectorForm("int8", 0.5).pack(wide).tolist() == [[127, -127, 0]]
    assert VectorForm("float16").pack(wide).tolist() == [[65504.0, -65504.0, 0.0]]


@given(matrices.filter(lambda vectors: np.abs(vectors).max() > 1e-3))
def test_a_suited_scale_clips_none_and_leaves_an_eighth(vectors):
    """The largest number of the calibration is step 111 of 127."""
    stored = VectorForm("int8", suited_scale(vectors)).pack(vectors)
    assert np.abs(stored.astype(int)).max() == 111


@given(matrices, st.sampled_from(FORMS))
def test_a_record_says_how_it_is_stored(vectors, form):
    """A reader needs the record alone: type, dims and scale are in it."""
    parts = EmbeddingParts("textray", "0" * 12, form)
    stored = form.pack(vectors)
    head = parts.head(COMPUTED, 1, Standing())
    records = [Embedding.FromString(head + parts.content(b"f" * 16, row.tobytes())) for row in stored]
    kinds = {"float32": FLOAT32, "float16": FLOAT16, "int8": INT8, "binary": BINARY}
    assert {(one.dtype, one.dims) for one in records} == {(kinds[form.output], vectors.shape[1])}
    read = form_of(records[0])
    assert read is not None
    assert read.output == form.output
    assert np.allclose(vectors_of(records), form.unpack(stored.tobytes(), len(stored)), rtol=1e-6)


@pytest.mark.parametrize(
    "change", [{"dtype": 0}, {"dtype": 99}, {"dims": 0}, {"dims": 17}, {"vector": b"1"}, {"scale": 0.0}], ids=str
)
def test_a_record_that_contradicts_itself_has_no_form(change):
    """An unknown type, no dims, a vector of another length, int8 without a scale."""
    record = Embedding(dtype=INT8, dims=16, vector=bytes(16), scale=0.5)
    assert form_of(record) == VectorForm("int8", 0.5)
    for name, value in change.items():
        setattr(record, name, value)
    assert form_of(record) is None
