"""What a transformer costs: the floating point operations (FLOPs) of texts, by their lengths in tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from encoders.batching import Lengths

_SHARED = "albert_layer_groups"
"""Layers of ALBERT, which its tokens go through again and again."""


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What decides a transformer's FLOPs, and the sizes of its largest matrices.

    linear_parameters: weights of linear layers that each token meets, so neither the pooler's nor a Dense module's.
    query_dims: numbers of a token's queries in all heads and layers. hidden, intermediate: as in its configuration.
    """

    linear_parameters: int
    query_dims: int
    hidden: int
    intermediate: int

    def flops(self, lengths: Lengths) -> float:
        """Of texts of these lengths, in tokens: 2 a weight and token, and 4 x query_dims x tokens^2 of attention.

        As in PaLM (Chowdhery et al., 2022), appendix B, a forward pass of it: attention is counted whole, of which a
        causal one, or one in a sliding window, computes less; relative positions, norms and look-ups are not counted.
        """
        tokens = lengths.astype(np.float64)
        return float(2 * self.linear_parameters * tokens.sum() + 4 * self.query_dims * (tokens @ tokens))


def model_cost(weights: Path) -> ModelCost:
    """Read it off the configuration in a model's folder, in 0.02 to 0.05 s; no weights are loaded.

    A configuration that names no layers or heads has no attention that is counted.
    """
    import torch  # noqa: PLC0415 - heavy, and nobody has a model without it
    from transformers import AutoConfig, AutoModel  # noqa: PLC0415

    config: Any = AutoConfig.from_pretrained(weights, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: torch.nn.Module = AutoModel.from_config(config, trust_remote_code=False)
    layers = getattr(config, "num_hidden_layers", 0)
    heads = getattr(config, "num_attention_heads", 0)
    rounds = layers // (getattr(config, "num_hidden_groups", 0) or layers or 1)
    linear = sum(
        module.weight.numel() * (rounds if _SHARED in name else 1)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith("pooler")
    )
    head_dims = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
    intermediate = getattr(config, "intermediate_size", 4 * config.hidden_size)
    return ModelCost(linear, layers * heads * head_dims, config.hidden_size, intermediate)
