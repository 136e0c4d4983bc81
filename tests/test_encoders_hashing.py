"""Laws of the hash encoder."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders import load_encoder, resolve_spec, warm_up
from schemas.errors import Fatal

real_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def vectors_of(texts, model="hash"):
    """Encode as a user would."""
    encoder = load_encoder(model)
    return encoder.encode(encoder.tokenise(texts), 1).vectors


@given(st.lists(real_text, unique=True, max_size=300))
def test_vectors_are_units_of_their_own(texts):
    """n texts give float32 (n, dims), C-contiguous, of norm 1, and different texts are nearly orthogonal."""
    vectors = vectors_of(texts)
    assert vectors.shape == (len(texts), 384)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    others = vectors @ vectors.T - np.eye(len(texts))
    assert np.abs(others).max(initial=0) < 0.5


@given(st.lists(real_text, min_size=1, max_size=30), st.data())
def test_a_vector_depends_on_its_text_alone(texts, data):
    """Whatever its neighbours, a text's vector is the same bytes."""
    index = data.draw(st.integers(0, len(texts) - 1))
    assert vectors_of(texts)[index].tobytes() == vectors_of([texts[index]])[0].tobytes()


def test_another_process_computes_the_same_bytes():
    """Neither hash seeds nor the process decide a vector."""
    code = (
        "import sys; from encoders import load_encoder; e = load_encoder('hash:32')\n"
        "sys.stdout.write(e.encode(e.tokenise(['', 'a', 'é 😀']), 1).vectors.tobytes().hex())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other == vectors_of(["", "a", "é 😀"], "hash:32").tobytes().hex()


def test_a_vector_that_never_changes():
    """The formula is fixed for good: a byte a dimension of SHAKE-128, less 127.5, scaled to length 1."""
    vector = vectors_of(["a post"], "hash:16")[0]
    assert np.allclose(vector[:4], [-0.4244642, -0.0405090, -0.2342479, 0.2729957], atol=1e-6)


def test_the_dims_are_in_the_version():
    """hash is hash:384, and other dims are another version."""
    assert resolve_spec("hash") == resolve_spec("hash:384")
    assert resolve_spec("hash").version != resolve_spec("hash:385").version
    assert load_encoder("hash:100").dims == 100


@pytest.mark.parametrize("model", ["hash:", "hash:0", "hash:15", "hash:16385", "hash:1e3", "hash:-16", "hash:016"])
def test_dims_that_cannot_be_are_refused(model):
    """Dims are a plain decimal number from 16 to 16,384."""
    with pytest.raises(Fatal, match="16 to 16384"):
        resolve_spec(model)


def test_settings_it_cannot_follow_are_refused():
    """What would be ignored is refused: another type, a truncation, a revision."""
    for settings in ({"dtype": "bfloat16"}, {"max_tokens": 10}, {"revision": "a" * 40}):
        with pytest.raises(Fatal, match=r"leave"):
            resolve_spec("hash", **settings)


def test_it_counts_bytes_as_tokens_and_warms_up():
    """Tokens are UTF-8 bytes, none of them padding."""
    encoder = load_encoder("hash")
    warm_up(encoder)
    encoded = encoder.encode(encoder.tokenise(["é", "", "abc"]), 1)
    assert (encoded.tokens, encoded.padded_tokens) == (5, 5)
