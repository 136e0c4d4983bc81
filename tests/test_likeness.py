"""Laws of comparing versions: what is alike is 1, and what the numbers mean does not depend on lengths or turns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyray.likeness import NEIGHBOURS, overlaps, rank_correlations, similarities

COUNT = 60


def vectors(seed: int, dims: int = 16) -> np.ndarray:
    """As many as there are posts."""
    return np.random.default_rng(seed).standard_normal((COUNT, dims), np.float32)


@given(st.integers(0, 1_000), st.floats(0.5, 100))
def test_a_version_is_like_itself_whatever_its_lengths(seed, length):
    """Also turned around: neighbours and ranks are those of cosines."""
    own = vectors(seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((16, 16)))
    near, other = similarities(own), similarities((own * np.float32(length)) @ turn.astype(np.float32))
    assert overlaps(near, near).tolist() == rank_correlations(near, near).tolist() == [1.0] * COUNT
    assert overlaps(near, other).mean() > 0.98  # what is as near as the tenth may be the eleventh
    assert rank_correlations(near, other).min() > 0.999


def test_ranks_are_spearmans():
    """By its definition, the correlation of ranks; and an opposite order is -1."""
    near, other = similarities(vectors(1)), similarities(vectors(2))
    found = rank_correlations(near, other)
    for post in range(COUNT):
        others = np.arange(COUNT) != post
        ranks = [np.argsort(np.argsort(each[post, others])) for each in (near, other)]
        assert found[post] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    opposite = np.where(np.isinf(near), near, -near)
    assert rank_correlations(near, opposite).tolist() == pytest.approx([-1.0] * COUNT)


def test_strangers_overlap_by_chance():
    """About as many neighbours as a random choice has."""
    shares = [overlaps(similarities(vectors(seed)), similarities(vectors(seed + 1))).mean() for seed in range(20)]
    assert np.mean(shares) == pytest.approx(NEIGHBOURS / (COUNT - 1), abs=0.02)


def test_a_vector_of_zeros_is_near_nothing():
    """And no number that is not one comes of it."""
    own = vectors(3)
    own[5] = 0
    near = similarities(own)
    assert not np.isnan(near).any()
    assert np.abs(near[5][np.arange(COUNT) != 5]).max() == 0
