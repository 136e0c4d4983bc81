"""Batches by tokens, not by count: a pure plan, which knows nothing of torch."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int32]
Batch = npt.NDArray[np.intp]


def plan_batches(lengths: Lengths, batch_tokens: int) -> list[Batch]:
    """Split the indices of `lengths` into batches of at most `batch_tokens` tokens, padded to their longest.

    Sorted by length, so that little is padded, and longest first: the batch that needs most memory is the
    first, so a want of it shows at once, and the smaller ones fit into what the first one freed. Equal
    lengths keep their order. An item longer than `batch_tokens` is a batch of its own. Every index is in
    exactly one batch.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        widest = max(1, int(lengths[order[start]]))
        batches.append(order[start : start + max(1, batch_tokens // widest)])
        start += len(batches[-1])
    return batches


def padded_tokens(lengths: Lengths, batches: Sequence[Batch]) -> int:
    """Tokens computed, padding included: each batch is as wide as its first item, the longest."""
    return sum(int(lengths[batch[0]]) * len(batch) for batch in batches)
