"""The engine: tokenises one window of texts while it computes those before."""

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


class Engine:
    """Tokenises on a thread of its own, and computes windows side by side, so that no core waits for a window's end.

    Urgent windows do not wait for others; those of a kind come in the order of `submit`, called from one thread.
    Nothing here limits what is in flight: the caller keeps `IN_FLIGHT_MAX` windows open, or as many as it wants memory
    spent on.
    """

    def __init__(self, encoder: Encoder, batch_tokens: int, clock: Callable[[], float] = perf_counter) -> None:
        self.encoder = encoder
        self.batch_tokens = batch_tokens
        """Tokens of a batch: half as many after each window of which a batch did not fit the memory."""
        self.batches = 0
        """Batches computed so far: it moves while a long window is under way. Any thread may read it."""
        self._clock = clock
        self._ended_s, self._ending = 0.0, Lock()
        self._tokeniser = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._windows = ThreadPoolExecutor(WINDOWS_MAX, thread_name_prefix="encode")

    @property
    def window_tokens(self) -> int:
        """Tokens of a window that suits the device: a batch for each worker, or more where more are to be sorted."""
        return self.encoder.workers * max(self.batch_tokens * self.encoder.window_batches, BATCH_TOKENS_CPU)

    def submit(self, texts: Sequence[str], is_urgent: bool = True) -> Future[EncodedBatch]:
        """Start on a window of n texts; the future gives its vectors, or raises what the encoder raised for it.

        Texts that alone do not fit the memory, or whose vectors are not finite, are in the batch's `failed`.

        RuntimeError: the engine is closed.
        """
        tokenised = self._tokeniser.submit(self.encoder.tokenise, texts)
        # The window's thread itself waits for the tokens, so that errors find their future.
        return self._windows.submit(self._encode, tokenised, is_urgent)

    def _encode(self, tokenised: Future[Tokens], is_urgent: bool) -> EncodedBatch:
        tokens = tokenised.result()
        start, batch_tokens = self._clock(), self.batch_tokens
        encoded = encode_each(self.encoder, tokens, batch_tokens, self._count, is_urgent)
        if encoded.splits:  # those of windows beside this one have the same cause
            self.batch_tokens = min(self.batch_tokens, max(BATCH_TOKENS_MIN, batch_tokens // 2))
        with self._ending:
            began_s, self._ended_s = max(start, self._ended_s), self._clock()
            return replace(encoded, encode_s=self._ended_s - began_s)

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
