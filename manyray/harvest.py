"""What the demo keeps of what it sends and receives: little, however much that is."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from manyray.subscription import Batch
from schemas.post import Post
from schemas.vectors import Matrix

LATENCY_MS_MAX = 600_000
TEXTS_MAX = 20_000
CONTENTS_MAX = 5_000

_ENGLISH = frozenset("the and is this my with for was you are to of it on".split())


class Harvest:
    """Counts, a histogram of latencies to the millisecond, and the vectors of the first contents.

    Written by the publishing and the subscribing thread, each its own parts; the counts are read by a third.
    """

    def __init__(self) -> None:
        self.published = 0
        self.received = 0
        self._latencies_ms = np.zeros(LATENCY_MS_MAX + 1, dtype=np.int64)
        self._texts: dict[str, str] = {}
        self._vectors: dict[bytes, tuple[str, Matrix]] = {}
        self._seen: Counter[bytes] = Counter()

    def remember(self, posts: Iterable[Post], stop: threading.Event) -> Iterator[Post]:
        """Hand posts on until `stop` is set, counting them and keeping the texts of the first ones."""
        for post in posts:
            if stop.is_set():
                return
            if len(self._texts) < TEXTS_MAX:
                self._texts[post.id] = post.text
            self.published += 1
            yield post

    def take(self, batch: Batch, arrived_ms: int) -> None:
        """Count a batch that arrived at a time, milliseconds since the epoch."""
        latencies = [arrived_ms - embedding.posted_ms for embedding in batch.embeddings]
        np.add.at(self._latencies_ms, np.clip(latencies, 0, LATENCY_MS_MAX), 1)
        for embedding, vector in zip(batch.embeddings, batch.vectors, strict=True):
            content = embedding.fingerprint
            if content in self._vectors:
                self._seen[content] += 1
            elif len(self._vectors) < CONTENTS_MAX and embedding.post_id in self._texts:
                self._vectors[content] = (embedding.post_id, vector)
                self._seen[content] += 1
        self.received += len(batch)

    def latency_ms(self, quantile: float) -> int:
        """The time from a post's record to its embedding's arrival here that this share of posts stayed within."""
        counts = np.cumsum(self._latencies_ms)
        return int(np.searchsorted(counts, quantile * counts[-1]))

    def neighbours(self, posts: int, nearest: int) -> list[tuple[str, list[tuple[float, str]]]]:
        """The texts of some posts, each with its nearest others by cosine: (cosine, text), the nearest first.

        The posts are those with the nearest others, English ones first, as the default model is for English; no post
        is shown twice.
        """
        nearest = min(nearest, len(self._vectors) - 1)
        if nearest < 1:
            return []
        texts = [self._texts[post_id] for post_id, _ in self._vectors.values()]
        matrix = np.stack([vector for _, vector in self._vectors.values()])
        matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
        cosines = matrix @ matrix.T
        np.fill_diagonal(cosines, -1.0)
        order = np.argsort(-cosines, axis=1)[:, :nearest]
        closeness = np.take_along_axis(cosines, order, axis=1).mean(axis=1)
        found: list[tuple[str, list[tuple[float, str]]]] = []
        shown: set[int] = set()
        for index in sorted(range(len(texts)), key=lambda index: (not _english(texts[index]), -closeness[index])):
            others: list[int] = order[index].tolist()
            if shown.isdisjoint([index, *others]):
                found.append((texts[index], [(float(cosines[index, other]), texts[other]) for other in others]))
                shown.update([index, *others])
            if len(found) == posts:
                break
        return found


def _english(text: str) -> bool:
    """A guess, good enough to choose what is shown."""
    return len(_ENGLISH.intersection(text.lower().split())) >= 2
