"""Laws of the batch plan."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from encoders.batching import padded_tokens, plan_batches

lengths_of_texts = st.lists(st.integers(0, 600), max_size=200).map(lambda items: np.array(items, np.int32))
budgets = st.integers(1, 5_000)


@given(lengths_of_texts, budgets)
def test_every_index_is_in_exactly_one_batch(lengths, batch_tokens):
    """A plan is a partition of the texts, without empty batches."""
    batches = plan_batches(lengths, batch_tokens)
    assert all(len(batch) for batch in batches)
    assert sorted(index for batch in batches for index in batch.tolist()) == list(range(len(lengths)))


@given(lengths_of_texts, budgets)
def test_a_batch_fits_the_budget_or_is_one_text(lengths, batch_tokens):
    """Width x count is at most the budget, except for a single text that is longer than it."""
    for batch in plan_batches(lengths, batch_tokens):
        assert len(batch) == 1 or max(1, lengths[batch].max()) * len(batch) <= batch_tokens


@given(lengths_of_texts, budgets)
def test_longest_first_and_equal_lengths_in_order(lengths, batch_tokens):
    """Read one after another, the batches are the stable sort of the texts by falling length."""
    planned = [index for batch in plan_batches(lengths, batch_tokens) for index in batch.tolist()]
    assert planned == sorted(range(len(lengths)), key=lambda index: -lengths[index])


@given(lengths_of_texts, budgets)
def test_no_batch_could_take_the_next_text(lengths, batch_tokens):
    """A batch is closed only because the next text would break its budget."""
    batches = plan_batches(lengths, batch_tokens)
    for batch in batches[:-1]:
        assert max(1, lengths[batch].max()) * (len(batch) + 1) > batch_tokens


@given(lengths_of_texts, budgets)
def test_padded_tokens_counts_what_is_computed(lengths, batch_tokens):
    """Every text of a batch is as wide as the longest of it."""
    batches = plan_batches(lengths, batch_tokens)
    computed = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert padded_tokens(lengths, batches) == computed


def test_a_plan_worked_by_hand():
    """Lengths 3 9 3 2 20 under a budget of 12: 20 is over it, 9 leaves no room, then 3 and 3 and 2 go together."""
    batches = plan_batches(np.array([3, 9, 3, 2, 20], np.int32), 12)
    assert [batch.tolist() for batch in batches] == [[4], [1], [0, 2, 3]]
