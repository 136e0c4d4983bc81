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

    contents: how many posts of the sample had each of its distinct contents. hits: posts of it that tables hold, None
    where nobody said so. tokens, vector_bytes: means, of a distinct content and of a vector.
    """

    offsets: int
    posts: int
    rejected: int
    tombstones: int
    filtered: int
    contents: tuple[int, ...]
    hits: int | None
    tokens: float
    post_bytes: float
    vector_bytes: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of a whole range. misses: distinct contents that are to be computed; at most `distinct` of them."""

    posts: int
    rejected: int
    tombstones: int
    filtered: int
    distinct: int
    hits: int | None
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
    distinct = distinct_of(sampled.contents, posts)
    cached = 0.0 if not sampled.hits else sampled.hits / sampled.posts
    misses = round(distinct * (1 - cached))
    vectors = misses * (sampled.vector_bytes + FINGERPRINT_BYTES)
    return Estimate(
        posts,
        round(sampled.rejected * scale),
        round(sampled.tombstones * scale),
        round(sampled.filtered * scale),
        distinct,
        None if sampled.hits is None else round(posts * cached),
        misses,
        round(misses * sampled.tokens),
        vectors + round(posts * (sampled.vector_bytes + EMBEDDING_BYTES + sampled.post_bytes)),
    )


def distinct_of(contents: Iterable[int], posts: int) -> int:
    """How many distinct contents so many posts have, given how often each of a sample was in it.

    GEE (Charikar et al. 2000, "Towards estimation error guarantees for distinct values"): contents that were met once
    count for sqrt(posts / sampled) each. No estimate from a sample is within that factor for every data (ibid.).
    """
    often = Counter(contents)
    sampled = sum(count * times for count, times in often.items())
    if not sampled:
        return 0
    once = often.pop(1, 0)
    return min(posts, round(math.sqrt(max(1.0, posts / sampled)) * once + often.total()))
