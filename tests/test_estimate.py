"""Laws of what a replay would cost, from a sample."""

from collections import Counter

import numpy as np
import pytest

from streams.estimate import Sampled, distinct_of, estimate


def test_a_sample_of_all_is_exact():
    """Where everything was read nothing is estimated."""
    assert distinct_of([1, 1, 3, 5], 10) == 4
    assert distinct_of([], 0) == 0
    found = estimate(Sampled(12, 10, 2, 0, 0, (1, 1, 3, 5), 4, 20.0, 8.0, 1_536), 12)
    assert (found.posts, found.rejected, found.distinct, found.hits, found.misses) == (10, 2, 4, 4, 2)
    assert found.tokens == 40
    assert found.seconds(10.0, share=0.5) == 8.0


@pytest.mark.parametrize("distinct", [100, 10_000, 1_000_000])
def test_distinct_contents_are_found_within_the_method_s_factor(distinct):
    """sqrt(posts / sampled), whatever share of the posts repeats."""
    posts, sampled = 1_000_000, 10_000
    random = np.random.default_rng(0)
    drawn = random.integers(0, distinct, posts) if distinct < posts else np.arange(posts)
    sample = Counter(random.choice(drawn, sampled, replace=False).tolist())
    found, true = distinct_of(sample.values(), posts), len(np.unique(drawn))
    assert true / 10 <= found <= true * 10
