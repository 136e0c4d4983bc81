"""Windows and batches by tokens, not by count: pure plans, which know nothing of torch."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int32]
Batch = npt.NDArray[np.intp]

_SHARE_MIN = 128
"""Tokens: less is not split among workers, as starting a model's layers then costs more than computing them."""

_BYTES_A_TOKEN = 3


def about_tokens(text_bytes: int) -> int:
    """What a text of so many bytes is about worth, in the Latin script: it says when a window is full, no more."""
    return 2 + text_bytes // _BYTES_A_TOKEN


def windows(texts: Sequence[str], tokens: int) -> Iterator[Sequence[str]]:
    """Cut texts as they come into windows of about `tokens` tokens or just more; the last one may have less."""
    start = gathered = 0
    for end, text in enumerate(texts, 1):
        gathered += about_tokens(len(text.encode()))
        if gathered >= tokens:
            yield texts[start:end]
            start, gathered = end, 0
    if start < len(texts):
        yield texts[start:]


def plan_batches(lengths: Lengths, batch_tokens: int, *, padded: bool = False, workers: int = 1) -> list[Batch]:
    """Split the indices of `lengths` into batches of at most `batch_tokens` tokens.

    Sorted by length and longest first: equal lengths stand together, which is how packed attention computes them; the
    batch that needs most memory is the first, so a want of it shows at once; and little is `padded` where all of a
    batch are made as wide as its longest, which then counts. Equal lengths keep their order. An item longer than
    `batch_tokens` is a batch of its own. Every index is in exactly one batch. Batches are smaller where as many of
    them are then of equal size, or more of them, which keep all `workers` busy to the end.
    """
    order = np.argsort(-lengths, kind="stable")
    costs = np.maximum(1, lengths[order].astype(np.int64))
    ends = np.cumsum(costs)
    if not len(order):
        return []
    budget = min(
        batch_tokens, _share(int(ends[-1]), batch_tokens, workers) + int(costs[0])
    )  # so that none is left over
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        if padded:
            count = budget // int(costs[start])
        else:
            before = int(ends[start - 1]) if start else 0
            count = int(np.searchsorted(ends, before + budget, side="right")) - start
        batches.append(order[start : start + max(1, count)])
        start += len(batches[-1])
    return batches


def padded_tokens(lengths: Lengths, batches: Sequence[Batch]) -> int:
    """Tokens computed where batches are padded: each is as wide as its first item, the longest."""
    return sum(int(lengths[batch[0]]) * len(batch) for batch in batches)


def _share(tokens: int, batch_tokens: int, workers: int) -> int:
    """The tokens of a batch that make as many batches as there are workers, or a multiple of that."""
    rounds = -(-tokens // (batch_tokens * workers))
    return max(_SHARE_MIN, -(-tokens // (rounds * workers)))
