"""Laws of what a replay would cost, from a sample."""

from collections import Counter

import numpy as np
import pytest

from streams.estimate import Sampled, distinct_of, estimate


def test_a_sample_of_all_is_exact():
    """Where everything was read nothing is estimated."""
    assert distinct_of([1, 1, 3, 5], 10) == (4, 4, 4)
    assert distinct_of([], 0) == (0, 0, 0)
    found = estimate(Sampled(12, 10, 2, 0, 0, (1, 1, 3, 5), 3, 20.0, 8.0, 1_536), 12)
    assert (found.posts, found.rejected, found.distinct, found.cached, found.misses) == (10, 2, 4, 3, 1)
    assert found.tokens == 20
    assert found.seconds(10.0, share=0.5) == 4.0


@pytest.mark.parametrize("distinct", [100, 10_000, 100_000, 1_000_000])
def test_without_skew_distinct_contents_are_found(distinct: int):
    """Within a fifth, whether all repeat or none; and within the bounds."""
    posts, sampled = 1_000_000, 20_000
    random = np.random.default_rng(0)
    drawn = random.integers(0, distinct, posts) if distinct < posts else np.arange(posts)
    sample = Counter(random.choice(drawn, sampled, replace=False).tolist())
    least, found, most = distinct_of(sample.values(), posts)
    true = len(np.unique(drawn))
    assert least <= true <= most
    assert 0.8 * true <= found <= 1.2 * true


@pytest.mark.parametrize("exponent", [1.1, 1.5, 2.0])
def test_with_skew_distinct_contents_are_found_within_the_method_s_factor(exponent: float):
    """sqrt(posts / sampled), and within the bounds."""
    posts, sampled = 1_000_000, 20_000
    random = np.random.default_rng(0)
    drawn = random.zipf(exponent, posts) % 100_000
    sample = Counter(random.choice(drawn, sampled, replace=False).tolist())
    least, found, most = distinct_of(sample.values(), posts)
    true, factor = len(np.unique(drawn)), (posts / sampled) ** 0.5
    assert least <= true <= most
    assert true / factor <= found <= true * factor
