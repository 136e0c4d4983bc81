"""How alike two versions see the same posts: pure numbers from their vectors."""

from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.vectors import Matrix

NEIGHBOURS = 10
"""As many as overlap@10 has."""
Numbers = npt.NDArray[np.floating[Any]]


def similarities(vectors: Matrix) -> Numbers:
    """The cosine of each pair of n vectors, (n, n); that of a vector with itself, and of one of zeros, is -inf."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    found = unit @ unit.T
    np.fill_diagonal(found, -np.inf)
    return found


def overlaps(one: Numbers, other: Numbers, neighbours: int = NEIGHBOURS) -> Numbers:
    """For each of n posts the share of its nearest neighbours that both have, by their similarities, (n,)."""
    nearest = [np.argpartition(-each, neighbours - 1, axis=1)[:, :neighbours] for each in (one, other)]
    is_near = np.zeros(one.shape, bool)
    np.put_along_axis(is_near, nearest[0], values=True, axis=1)
    return np.take_along_axis(is_near, nearest[1], axis=1).mean(axis=1)


def rank_correlations(one: Numbers, other: Numbers) -> Numbers:
    """For each of n posts Spearman's correlation of its similarities to the others, (n,), https://doi.org/10.2307/1412159.

    Equal similarities are ranked in the order of the posts, in both: of vectors that are floats they are repeats.
    """
    count = len(one)
    ranks: list[Numbers] = []
    for each in (one, other):
        order = np.argsort(each, axis=1, kind="stable")
        rank = np.empty(order.shape, np.float64)
        np.put_along_axis(rank, order, np.arange(count, dtype=np.float64)[None, :], axis=1)
        ranks.append(rank)
    # The post itself is the first in both: what is left are ranks of 1 to n - 1, whose variance is known.
    difference = ((ranks[0] - ranks[1]) ** 2).sum(axis=1)
    others = count - 1
    return 1 - 6 * difference / (others * (others**2 - 1))
