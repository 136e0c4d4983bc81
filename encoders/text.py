"""The text encoder: tokenizers' Rust tokenizer, a transformers model, batches by tokens, exact pooling."""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from encoders.batching import Batch, padded_tokens, plan_batches
from encoders.device import resolve_device, suited_batch_tokens
from encoders.encoder import EncodedBatch, Tokens
from encoders.model_folder import read_model_folder
from encoders.pooling import pool
from encoders.transformer import load_transformer
from encoders.version import VersionSpec

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that memory is wanting: a GPU's in a class of its own, a CPU's in words."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)


class TextEncoder:
    """A sentence-transformers or transformers folder on one device, with sentence-transformers' own vectors.

    Arithmetic is the dtype's own: no TF32, no autocast. `encode` is for one thread at a time; `tokenise` may
    run beside it.
    """

    def __init__(self, spec: VersionSpec, folder: Path, device: str = "auto") -> None:
        """Load the weights: 0.5 s for 90 MB. Fatal: as `read_model_folder`, `resolve_device`,
        `load_transformer`.
        """
        self.spec = spec
        self.device = resolve_device(device)
        self.batch_tokens = suited_batch_tokens(self.device)
        self._folder = read_model_folder(folder)
        auto = "float32" if self.device.type == "cpu" else "bfloat16"
        dtype = _DTYPES[auto if spec.dtype == "auto" else spec.dtype]
        self._transformer = load_transformer(self._folder, spec.max_tokens, dtype, self.device)
        self.max_tokens = self._transformer.max_tokens
        self.dims = self._transformer.width * len(self._folder.poolings)

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Cut each text to `max_tokens` tokens, the special ones among them. Uses all cores, without the GIL.

        A text of no tokens at all (some models add none to an empty text) becomes one padding token, which is
        read.
        """
        nothing = [self._transformer.pad_id]
        ids = [encoding.ids or nothing for encoding in self._transformer.tokenizer.encode_batch_fast(texts)]
        lengths = np.fromiter(map(len, ids), np.int32, len(ids))
        return Tokens(lengths, np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())))

    @torch.inference_mode()
    def encode(self, tokens: Tokens, batch_tokens: int, on_batch: Callable[[], object] = lambda: None) -> EncodedBatch:
        """(n, dims) float32. On a GPU `on_batch` tells of a launch."""
        try:
            return self._encode(tokens, batch_tokens, on_batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Out here, as the error holds on to what was being computed.
        torch.cuda.empty_cache()
        raise MemoryError(f"a batch of batch_tokens={batch_tokens} does not fit the memory of {self.device}")

    def _encode(self, tokens: Tokens, batch_tokens: int, on_batch: Callable[[], object]) -> EncodedBatch:
        batches = plan_batches(tokens.lengths, batch_tokens)
        starts = np.cumsum(tokens.lengths, dtype=np.int64) - tokens.lengths
        # Filled on the device and copied once, so that a GPU never waits between two batches.
        vectors = torch.empty((len(tokens.lengths), self.dims), dtype=torch.float32, device=self.device)
        for batch in batches:
            vectors[torch.from_numpy(batch).to(self.device)] = self._encode_batch(tokens, starts, batch)
            on_batch()
        return EncodedBatch(
            vectors.cpu().numpy(),
            tokens=int(tokens.lengths.sum(dtype=np.int64)),
            padded_tokens=padded_tokens(tokens.lengths, batches),
        )

    def _encode_batch(self, tokens: Tokens, starts: np.ndarray, batch: Batch) -> torch.Tensor:
        """Pad on the right to the batch's first text, the longest; run the model; pool."""
        lengths = tokens.lengths[batch]
        columns = np.arange(lengths[0])
        real = columns < lengths[:, None]
        positions = np.where(real, starts[batch][:, None] + columns, 0)
        ids = torch.from_numpy(np.where(real, tokens.ids[positions], self._transformer.pad_id)).to(self.device).long()
        # No mask where nothing is padded: attention is then free to take its faster way.
        mask = None if real.all() else torch.from_numpy(real).to(self.device)
        hidden = self._transformer.run(ids, mask)
        return pool(
            hidden,
            torch.from_numpy(lengths).to(self.device),
            mask,
            self._folder.poolings,
            self._folder.normalise,
        )
