"""The text encoder: tokenizers' Rust tokenizer, a backend for the layers, batches by tokens, exact pooling."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from encoders.backend import Backend, load_graph
from encoders.batching import padded_tokens, plan_batches
from encoders.cost import model_cost
from encoders.dense import DenseLayer, load_dense
from encoders.device import lacks_bfloat16, resolve_device
from encoders.device_queue import cores, queue_of
from encoders.encoder import EncodedBatch, Tokens
from encoders.model_folder import check_dims, read_model_folder
from encoders.outline import read_outline
from encoders.packing import Packed, pack
from encoders.peak import quick_peak
from encoders.pooling import pool
from encoders.tokenising import tokeniser_of
from encoders.transformer import load_transformer
from encoders.version import VersionSpec
from schemas.errors import Fatal

_log = logging.getLogger("manyray.encode")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_WINDOW_BATCHES_PADDED = 16
"""Of tweets in batches of 512 tokens 4 % is padding then; of half as many 7 %, of a quarter 12 %."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory is wanting: a GPU's or a backend's has a class of its own, torch tells of a CPU's in words."""
    has_class = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return has_class or "DefaultCPUAllocator: can't allocate" in str(error)


class TextEncoder:
    """A sentence-transformers or transformers folder on one device, with sentence-transformers' own vectors.

    Arithmetic is the dtype's own: no TF32, no autocast. Any number of threads may `tokenise` and `encode` at a
    time. On a CPU each core computes a batch of its own: cores that share one wait for each other at every layer. A
    GPU has the next batch waiting while it computes one, and no more, so that an urgent one is never behind many.
    """

    def __init__(
        self,
        spec: VersionSpec,
        folder: Path,
        device: str = "auto",
        *,
        graph: str = "",
        matryoshka_dims: tuple[int, ...] = (),
    ) -> None:
        """Load the weights: 0.5 s for 90 MB. graph: the file whose digest `spec` has, of a backend that runs one.

        Fatal: as `read_model_folder`, `check_dims`, `resolve_device`, `read_outline`, `load_transformer` or
        `load_graph`, and `load_dense`; or the vectors are not as long as `dims`, or not of whole bytes in binary.
        """
        self.spec = spec
        self.device = resolve_device(device, spec.backend)
        found = read_model_folder(folder)
        check_dims(found, spec.dims, matryoshka_dims)
        is_cpu = self.device.type == "cpu"
        auto = "float32" if is_cpu else "bfloat16"
        self.dtype = dtype = _DTYPES[auto if spec.dtype == "auto" else spec.dtype]
        if dtype == torch.bfloat16 and is_cpu and lacks_bfloat16():
            _log.warning("dtype=bfloat16 is slower than float32 on this processor, which has no instructions for it")
        self.workers = cores() if is_cpu else 1
        self.queue = queue_of(self.device)
        self._outline = read_outline(found, spec.max_tokens, spec.truncation_side)
        self._backend: Backend = (
            load_transformer(found.weights, self._outline, dtype, self.device)
            if spec.backend == "torch"
            else load_graph(spec.backend, Path(graph), self._outline, dtype, self.workers)
        )
        self.batch_tokens = self._backend.batch_tokens
        self.max_tokens = self._outline.max_tokens
        self.cost = model_cost(found.weights)
        self._poolings = found.poolings if spec.pooling is None else (spec.pooling,)
        self._normalises = found.normalise if spec.normalise is None else spec.normalise
        self._prompt = found.prompt if spec.prompt is None else spec.prompt
        self.tokeniser = tokeniser_of(self, self._outline.tokenizer, self._prompt, self._outline.pad_id)
        self._skipped = 0 if found.pools_prompt else self._prompt_tokens()
        self._denses: list[DenseLayer] = []
        width = self._outline.width * len(self._poolings)
        for dense in found.denses:
            self._denses.append(load_dense(dense, width, self.device))
            width = dense.dims
        self.dims = spec.dims or found.dims or width
        if self.dims > width:
            raise Fatal(f"dims={self.dims} is more than the {width} numbers of the model's vectors: lower it")
        if self.dims * spec.form.bits % 8:
            raise Fatal(
                f"output={spec.output} stores eight numbers a byte, and dims={self.dims}: choose another output"
            )

    @property
    def window_batches(self) -> int:
        """As in `Encoder`."""
        return 1 if self._backend.is_packed else _WINDOW_BATCHES_PADDED

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Put the prompt before each text, and cut both to `max_tokens` tokens, the special ones among them.

        Uses all cores, without the GIL; what an encoder with the same tokenizer had lately is not tokenised again.
        A text of no tokens at all (some models add none to an empty text) becomes one padding token, which is
        read.
        """
        return self.tokeniser(texts)

    def encode(
        self, tokens: Tokens, batch_tokens: int, on_batch: Callable[[], object] = lambda: None, is_urgent: bool = True
    ) -> EncodedBatch:
        """(n, dims) float32."""
        try:
            return self._encode(tokens, batch_tokens, on_batch, is_urgent)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Out here, as the error holds on to what was being computed.
        torch.cuda.empty_cache()
        raise MemoryError(f"a batch of batch_tokens={batch_tokens} does not fit the memory of {self.device}")

    def peak_flops_per_s(self) -> float:
        """As `quick_peak`."""
        return quick_peak(self.device, self.dtype)

    def _encode(
        self, tokens: Tokens, batch_tokens: int, on_batch: Callable[[], object], is_urgent: bool
    ) -> EncodedBatch:
        is_packed = self._backend.is_packed
        batches = plan_batches(tokens.lengths, batch_tokens, padded=not is_packed, workers=self.workers)
        if not batches:
            return EncodedBatch(np.empty((0, self.dims), np.float32), tokens=0, padded_tokens=0)
        order = np.concatenate(batches)
        window = pack(tokens, order, self._outline.pad_position, self.device)
        bounds = list(pairwise(accumulate(map(len, batches), initial=0)))
        parts = self._side_by_side([window.part(*bound) for bound in bounds], on_batch, is_urgent)
        vectors = np.empty((len(order), self.dims), np.float32)
        vectors[order] = torch.cat(parts).numpy()
        real = int(tokens.lengths.sum(dtype=np.int64))
        computed = real if is_packed else padded_tokens(tokens.lengths, batches)
        return EncodedBatch(vectors, tokens=real, padded_tokens=computed, flops=self.cost.flops(tokens.lengths))

    def _side_by_side(
        self, batches: list[Packed], on_batch: Callable[[], object], is_urgent: bool
    ) -> list[torch.Tensor]:
        futures = [
            self.queue.threads.submit(partial(self._compute_on_thread, batch, len(batches)), is_urgent)
            for batch in batches
        ]
        for future in as_completed(futures):
            if future.exception() is None:
                on_batch()
        return [future.result() for future in futures]

    def _compute_on_thread(self, batch: Packed, batches: int) -> torch.Tensor:
        """A batch a core, or several cores a batch where there are more cores than batches, of any window."""
        if self.device.type == "cpu":
            threads = max(1, self.workers // max(batches, self.queue.threads.unfinished))
            if torch.get_num_threads() != threads:  # of this thread
                torch.set_num_threads(threads)
            return self._compute(batch)
        with self.queue.launching:
            vectors = self._compute(batch)
            found = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            found.copy_(vectors, non_blocking=True)
            computed = torch.cuda.Event()
            computed.record()
        computed.synchronize()
        return found

    @torch.inference_mode()
    def _compute(self, batch: Packed) -> torch.Tensor:
        vectors = pool(self._backend.run(batch), batch.offsets, self._poolings, self._skipped)
        for dense in self._denses:
            vectors = dense(vectors)
        vectors = vectors[:, : self.dims]
        return normalize(vectors, dim=-1) if self._normalises else vectors

    def _prompt_tokens(self) -> int:
        """How many tokens of each text are the prompt's: all but a special one that ends a text."""
        encoding = self._outline.tokenizer.encode(self._prompt)
        return len(encoding.ids) - int(any(encoding.special_tokens_mask[-1:])) if self._prompt else 0
