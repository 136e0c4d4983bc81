"""The engine: tokenises one window of texts while it computes those before."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Lock

# The shared clock lives in a package above this one; this reading is a metric and decides nothing.
from time import perf_counter  # noqa: TID251
from types import TracebackType
from typing import Self

from encoders.device import BATCH_TOKENS_CPU, BATCH_TOKENS_MIN
from encoders.encoder import EncodedBatch, Encoder, Tokens
from encoders.rescue import encode_each

WINDOWS_MAX = 8
"""Computed side by side; more wait. A window needs a thread only to wait for its batches."""
IN_FLIGHT_MAX = 3
"""Windows that keep a device busy: two are computed while the first one's vectors are taken away."""

_SHORT_TOKENS_MIN = 256
"""Of a batch that others are to overtake: with less, starting a model's layers costs more than computing them."""


class Engine:
    """Tokenises on a thread of its own, and computes windows side by side, so that no core waits for a window's end.

    Windows that are due earlier come first, batch by batch; those due at the same time in the order of `submit`,
    called from one thread. Nothing here limits what is in flight: the caller keeps `IN_FLIGHT_MAX` windows open, or as
    many as it wants memory spent on.
    """

    def __init__(self, encoder: Encoder, batch_tokens: int, clock: Callable[[], float] = perf_counter) -> None:
        self.encoder = encoder
        self.batch_tokens = batch_tokens
        """Tokens of a batch: half as many after each window of which a batch did not fit the memory."""
        self.batches = 0
        """Batches computed so far: it moves while a long window is under way. Any thread may read it."""
        self._clock = clock
        self._ended_s, self._ending = 0.0, Lock()
        self._tokens_per_s = math.inf
        """Of one worker, in the last window of about full batches."""
        self._tokeniser = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._windows = ThreadPoolExecutor(WINDOWS_MAX, thread_name_prefix="encode")

    @property
    def window_tokens(self) -> int:
        """Tokens of a window that suits the device: a batch for each worker, and of small ones enough to sort."""
        return self.encoder.workers * max(self.batch_tokens, BATCH_TOKENS_CPU)

    def batch_tokens_within(self, seconds: float) -> int:
        """Tokens of a batch that takes about so long at the last pace, for windows that others are to overtake."""
        return int(min(self.batch_tokens, max(_SHORT_TOKENS_MIN, seconds * self._tokens_per_s)))

    def submit(self, texts: Sequence[str], due_s: float = 0.0, batch_tokens: int | None = None) -> Future[EncodedBatch]:
        """Start on a window of n texts; the future gives its vectors, or raises what the encoder raised for it.

        due_s: by any clock, the same one for all windows. batch_tokens: where they are to be less than the engine's.
        Texts that alone do not fit the memory, or whose vectors are not finite, are in the batch's `failed`.

        RuntimeError: the engine is closed.
        """
        tokenised = self._tokeniser.submit(self.encoder.tokenise, texts)
        # The window's thread itself waits for the tokens, so that errors find their future.
        return self._windows.submit(self._encode, tokenised, due_s, batch_tokens or self.batch_tokens)

    def _encode(self, tokenised: Future[Tokens], due_s: float, batch_tokens: int) -> EncodedBatch:
        tokens = tokenised.result()
        start, batch_tokens = self._clock(), min(batch_tokens, self.batch_tokens)
        encoded = encode_each(self.encoder, tokens, batch_tokens, self._count, due_s)
        if encoded.splits:  # those of windows beside this one have the same cause
            self.batch_tokens = min(self.batch_tokens, max(BATCH_TOKENS_MIN, batch_tokens // 2))
        with self._ending:
            began_s, self._ended_s = max(start, self._ended_s), self._clock()
            encode_s = self._ended_s - began_s
            if encode_s and batch_tokens == self.batch_tokens and encoded.padded_tokens >= self.window_tokens // 2:
                self._tokens_per_s = encoded.padded_tokens / encode_s / self.encoder.workers
        return replace(encoded, encode_s=encode_s)

    def _count(self) -> None:
        self.batches += 1

    def close(self) -> None:
        """Finish the windows that are being computed, and cancel those behind them. May be called again."""
        # These first: what they are at may still wait for the tokenising one.
        self._windows.shutdown(cancel_futures=True)
        self._tokeniser.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
