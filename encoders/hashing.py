"""The hash encoder: vectors without a model, for load tests and for tests of everything around a model."""

import hashlib
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np

from encoders.device import BATCH_TOKENS_CPU
from encoders.encoder import EncodedBatch, Tokens
from encoders.version import VersionSpec

# Texts normalised at a time: 128 x 384 float32 stay in a core's own cache.
_ROWS = 128


class HashEncoder:
    """Deterministic unit vectors from a text's bytes alone: one SHAKE-128 digest a text, a byte a dimension.

    Its tokens are the UTF-8 bytes. Equal texts get equal vectors and others nearly orthogonal ones, everywhere.
    """

    def __init__(self, spec: VersionSpec, dims: int) -> None:
        self.spec = spec
        self.dims = dims
        self.batch_tokens = BATCH_TOKENS_CPU
        self.workers = self.window_batches = 1
        self.device = None

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """UTF-8 bytes; nothing is cut. UnicodeEncodeError: a lone surrogate, which no decoded post holds."""
        raw = [text.encode() for text in texts]
        return Tokens(np.fromiter(map(len, raw), np.int32, len(raw)), np.frombuffer(b"".join(raw), np.uint8))

    def encode(
        self, tokens: Tokens, batch_tokens: int, on_batch: Callable[[], object] = lambda: None, is_urgent: bool = True
    ) -> EncodedBatch:
        """(n, dims) float32 of norm 1. Nothing is padded and nothing waits: neither budget nor urgency has a say."""
        dims, shake, content = self.dims, hashlib.shake_128, tokens.ids.tobytes()
        bounds = pairwise(accumulate(tokens.lengths.tolist(), initial=0))
        digests = b"".join([shake(content[start:end]).digest(dims) for start, end in bounds])
        numbers = np.frombuffer(digests, np.uint8).reshape(-1, dims)
        vectors = np.empty(numbers.shape, np.float32)
        for start in range(0, len(numbers), _ROWS):
            rows = vectors[start : start + _ROWS]
            # Centred, and never 0: so the norm is never 0 either.
            np.subtract(numbers[start : start + _ROWS], np.float32(127.5), out=rows)
            rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
            on_batch()
        return EncodedBatch(vectors, tokens=len(content), padded_tokens=len(content))

    def peak_flops_per_s(self) -> float:
        """0: nothing is multiplied."""
        return 0.0
