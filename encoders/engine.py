"""The engine: tokenises one window of texts while it computes the one before."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

# The shared clock lives in a package above this one; this reading is a metric and decides nothing.
from time import perf_counter  # noqa: TID251
from types import TracebackType
from typing import Self

from encoders.device import BATCH_TOKENS_MIN
from encoders.encoder import EncodedBatch, Encoder, Tokens
from encoders.rescue import encode_each


class Engine:
    """Two threads in a row: one tokenises, one computes, and both work outside the GIL most of the time.

    Results come in the order of `submit`, called from one thread. Nothing here limits what is in flight: the
    caller keeps as many windows open as it wants memory spent on; two keep the computing thread busy.
    """

    def __init__(self, encoder: Encoder, batch_tokens: int, clock: Callable[[], float] = perf_counter) -> None:
        self.encoder = encoder
        self.batch_tokens = batch_tokens
        """Tokens of a batch: half as many after each window of which a batch did not fit the memory."""
        self.batches = 0
        """Batches computed so far: it moves while a long window is under way. Any thread may read it."""
        self._clock = clock
        self._tokeniser = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._computer = ThreadPoolExecutor(1, thread_name_prefix="encode")

    def submit(self, texts: Sequence[str]) -> Future[EncodedBatch]:
        """Start on a window of n texts; the future gives its vectors, or raises what the encoder raised for it.

        Texts that alone do not fit the memory, or whose vectors are not finite, are in the batch's `failed`.

        RuntimeError: the engine is closed.
        """
        tokenised = self._tokeniser.submit(self.encoder.tokenise, texts)
        # The computing thread itself waits for the tokens: windows keep their order, errors find their future.
        return self._computer.submit(self._encode, tokenised)

    def _encode(self, tokenised: Future[Tokens]) -> EncodedBatch:
        tokens = tokenised.result()
        start = self._clock()
        encoded = encode_each(self.encoder, tokens, self.batch_tokens, self._count)
        if encoded.splits:
            self.batch_tokens = max(BATCH_TOKENS_MIN, self.batch_tokens // 2)
        return replace(encoded, encode_s=self._clock() - start)

    def _count(self) -> None:
        self.batches += 1

    def close(self) -> None:
        """Finish the window that is being computed, and cancel those behind it. May be called again."""
        # The computing thread first: what it is at may still wait for the tokenising one.
        self._computer.shutdown(cancel_futures=True)
        self._tokeniser.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
