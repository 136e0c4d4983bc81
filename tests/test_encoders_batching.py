"""Laws of the batch plan."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.batching import padded_tokens, plan_batches, windows
from schemas.internal_pb2 import Chunk
from streams.window import Window

lengths_of_texts = st.lists(st.integers(0, 600), max_size=200).map(lambda items: np.array(items, np.int32))
budgets = st.integers(1, 5_000)
ways = st.fixed_dictionaries({"padded": st.booleans(), "workers": st.integers(1, 9)})


def cost(lengths, padded):
    """Tokens computed for a batch: an empty text counts as one."""
    costs = np.maximum(1, lengths)
    return int(costs.max()) * len(costs) if padded else int(costs.sum())


@given(lengths_of_texts, budgets, ways)
def test_every_index_is_in_exactly_one_batch(lengths, batch_tokens, how):
    """A plan is a partition of the texts, without empty batches."""
    batches = plan_batches(lengths, batch_tokens, **how)
    assert all(len(batch) for batch in batches)
    assert sorted(index for batch in batches for index in batch.tolist()) == list(range(len(lengths)))


@given(lengths_of_texts, budgets, ways)
def test_a_batch_fits_the_budget_or_is_one_text(lengths, batch_tokens, how):
    """What is computed is at most the budget, except for a single text that is longer than it."""
    for batch in plan_batches(lengths, batch_tokens, **how):
        assert len(batch) == 1 or cost(lengths[batch], how["padded"]) <= batch_tokens


@given(lengths_of_texts, budgets, ways)
def test_longest_first_and_equal_lengths_in_order(lengths, batch_tokens, how):
    """Read one after another, the batches are the stable sort of the texts by falling length."""
    planned = [index for batch in plan_batches(lengths, batch_tokens, **how) for index in batch.tolist()]
    assert planned == sorted(range(len(lengths)), key=lambda index: -lengths[index])


@given(lengths_of_texts, budgets)
def test_one_worker_has_no_more_batches_than_the_budget_asks_for(lengths, batch_tokens):
    """As many as if each took all that it can; but of about equal size."""
    greedy, left = 0, -1
    for item in sorted(np.maximum(1, lengths).tolist(), reverse=True):
        greedy, left = (greedy, left - item) if item <= left else (greedy + 1, batch_tokens - item)
    assert len(plan_batches(lengths, batch_tokens)) == greedy


def test_what_is_little_over_the_budget_is_two_halves():
    """And not a full batch and a rest, for which a device has to start as well."""
    assert [len(batch) for batch in plan_batches(np.full(110, 20, np.int32), 2_000)] == [56, 54]


@given(lengths_of_texts, budgets)
def test_padded_tokens_counts_what_is_computed(lengths, batch_tokens):
    """Every text of a padded batch is as wide as the longest of it."""
    batches = plan_batches(lengths, batch_tokens, padded=True)
    computed = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert padded_tokens(lengths, batches) == computed


@pytest.mark.parametrize(("texts", "expected"), [(300, 8), (110, 4), (51, 4), (24, 4), (14, 2), (7, 1)])
def test_workers_have_equal_shares(texts, expected):
    """4 workers, 20 tokens a text: 6 batches become 8, 3, 2 and 1 become 4, 280 tokens 2, and 140 stay 1."""
    batches = plan_batches(np.full(texts, 20, np.int32), 1_000, workers=4)
    sizes = [len(batch) for batch in batches]
    assert len(batches) == expected
    assert max(sizes) - min(sizes) <= len(batches)


def test_a_plan_worked_by_hand():
    """Lengths 3 9 3 2 20 under a budget of 12: 20 is over it, 9 and 3 fill it, 3 and 2 are left; padded, 9 is alone."""
    lengths = np.array([3, 9, 3, 2, 20], np.int32)
    assert [batch.tolist() for batch in plan_batches(lengths, 12)] == [[4], [1, 0], [2, 3]]
    assert [batch.tolist() for batch in plan_batches(lengths, 12, padded=True)] == [[4], [1], [0, 2, 3]]


def test_windows_are_those_of_the_pipeline():
    """Texts in a list are cut where the role encode ends a window of the same posts."""
    texts = [f"{'é' * (number % 50)} {number}" for number in range(400)]
    mine = [len(part) for part in windows(texts, 500)]
    theirs, window = [], Window()
    for number, text in enumerate(texts):
        fingerprint = number.to_bytes(16, "big")
        chunk = Chunk(fingerprints=fingerprint, texts=[text.encode()], ids=[str(number)], contents=[0])
        window.add(chunk, ("misses", 0), number, 0.0)
        if window.is_full(500, 10**9):
            theirs.append(window.posts)
            window = Window()
    assert mine == [*theirs, *([window.posts] if window.posts else [])]
