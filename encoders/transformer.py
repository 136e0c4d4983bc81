"""torch as a backend: a transformer from a folder, with no network, no code of the folder's own and no pickle."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from encoders.device import suited_batch_tokens
from encoders.forward import run_packed, run_padded, try_packing
from encoders.linear import lay_out_linears
from encoders.outline import LOCAL, Outline, quiet
from encoders.packing import Packed
from schemas.errors import Fatal


@dataclass(frozen=True, slots=True)
class Transformer:
    """A model on its device. pad_id: what to pad ids with. The rest is as in `Backend`."""

    model: PreTrainedModel
    pad_id: int
    is_packed: bool
    batch_tokens: int

    def run(self, batch: Packed) -> Tensor:
        """As `Backend.run`."""
        if self.is_packed:
            return run_packed(self.model, batch)
        return run_padded(self.model, batch, self.pad_id)


def load_transformer(weights: Path, outline: Outline, dtype: torch.dtype, device: torch.device) -> Transformer:
    """Load a folder's transformer, to compute in `dtype` on `device`.

    Fatal: as `load_model`.
    """
    model = load_model(weights, dtype).to(device)  # pyright: ignore[reportArgumentType]
    is_packed = try_packing(model, outline.pad_id, outline.pad_position, outline.max_tokens)
    batch_tokens = suited_batch_tokens(device, dtype, is_packed=is_packed)
    if device.type == "cpu":
        lay_out_linears(model, batch_tokens)
    return Transformer(model, outline.pad_id, is_packed, batch_tokens)


def load_model(weights: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a folder's model as transformers has it.

    Fatal: transformers cannot load it, or weights are missing.
    """
    how = {**LOCAL, "use_safetensors": True, "dtype": dtype}
    # Weights of another shape are told below, by name.
    how |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with quiet():
        try:
            try:
                model, report = AutoModel.from_pretrained(weights, attn_implementation="sdpa", **how)
            except ValueError:  # a few architectures have no sdpa
                model, report = AutoModel.from_pretrained(weights, attn_implementation="eager", **how)
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            raise Fatal(f"model={weights}: transformers cannot load it: {error}") from error
    # transformers fills a missing weight with random numbers. The pooler is the one part we never read.
    wrong = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    wrong += [key for key, *_ in report["mismatched_keys"]]
    if wrong:
        raise Fatal(f"model={weights}: {len(wrong)} weights lack or do not fit, as {min(wrong)}: fetch it again")
    return model.eval()
