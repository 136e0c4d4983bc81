"""What a replay would cost, from a sample of its range. Pure."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

EMBEDDING_BYTES = 120
"""Of a record on `embeddings` beside its vector and its id, about."""
FINGERPRINT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was read of a range: offsets covered, and what became of the records on them.

    contents: how many posts of the sample had each of its distinct contents. cached: how many of these the tables
    hold, None where nobody said so. tokens: of a distinct content, on average. post_bytes: of a post's id and content.
    """

    offsets: int
    posts: int
    rejected: int
    tombstones: int
    filtered: int
    contents: tuple[int, ...]
    cached: int | None
    tokens: float
    post_bytes: float
    vector_bytes: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of a whole range. misses: distinct contents that are to be computed. bytes_written: on all topics, before
    compression and replicas.
    """

    posts: int
    rejected: int
    tombstones: int
    filtered: int
    distinct: int
    distinct_min: int
    distinct_max: int
    cached: int | None
    misses: int
    tokens: int
    bytes_written: int

    def seconds(self, tokens_per_s: float, share: float = 1.0) -> float:
        """Of an encoder of that speed, of whose time it has that share."""
        return self.tokens / tokens_per_s / share


def estimate(sampled: Sampled, offsets: int) -> Estimate:
    """Scale a sample up to a range of so many offsets."""
    scale = offsets / sampled.offsets if sampled.offsets else 0.0
    posts = round(sampled.posts * scale)
    least, distinct, most = distinct_of(sampled.contents, posts)
    cached = round(distinct * (sampled.cached or 0) / max(1, len(sampled.contents)))
    misses = distinct - cached
    vectors = misses * (sampled.vector_bytes + FINGERPRINT_BYTES)
    passing = posts * sampled.post_bytes + misses * sampled.post_bytes  # through `lookups`, and through the misses
    return Estimate(
        posts,
        round(sampled.rejected * scale),
        round(sampled.tombstones * scale),
        round(sampled.filtered * scale),
        distinct,
        least,
        most,
        None if sampled.cached is None else cached,
        misses,
        round(misses * sampled.tokens),
        vectors + round(posts * (sampled.vector_bytes + EMBEDDING_BYTES) + passing),
    )


def distinct_of(contents: Iterable[int], posts: int) -> tuple[int, int, int]:
    """How many distinct contents so many posts have, given how often each of a sample was in it: the least, a guess,
    and the most.

    HYBGEE (Charikar et al. 2000, "Towards estimation error guarantees for distinct values"): where a chi-squared test
    finds no skew, Duj1 (Haas and Stokes 1998), else GEE. Bounds as in the first. No estimate from a sample is good for
    all data (ibid.): it cannot tell whether what it met once is rare or unique.
    """
    often = Counter(contents)
    sampled = sum(count * times for count, times in often.items())
    if not sampled:
        return 0, 0, 0
    distinct, once, scale = often.total(), often[1], max(1.0, posts / sampled)
    most = distinct - once + scale * once
    mean = sampled / distinct
    spread = sum(times * (count - mean) ** 2 for count, times in often.items()) / mean
    is_skewed = spread > _chi_squared(distinct - 1)
    guess = (
        distinct - once + math.sqrt(scale) * once if is_skewed else sampled * distinct / (sampled - once + once / scale)
    )
    return distinct, min(posts, round(guess)), min(posts, round(most))


def _chi_squared(freedom: int) -> float:
    """The 97.5 % quantile, by Wilson and Hilferty (1931)."""
    part = 2 / (9 * max(1, freedom))
    return freedom * (1 - part + 1.96 * math.sqrt(part)) ** 3
