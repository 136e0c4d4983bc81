"""From one vector a token to one a text. Formulas: sentence-transformers' Pooling and Normalize."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def pool(hidden: Tensor, lengths: Tensor, mask: Tensor | None, poolings: tuple[str, ...], unit: bool) -> Tensor:
    """Pool right-padded `hidden` (batch, width, d) to float32 (batch, d x poolings), of length 1 if `unit`.

    lengths: (batch,), each at least 1. mask: bool (batch, width), True at real tokens; None where nothing is
    padded. Sums are float32 whatever the model computes in.
    """
    hidden = hidden.float()
    pooled = torch.cat([_pool_one(hidden, lengths, mask, how) for how in poolings], dim=-1)
    return normalize(pooled, dim=-1) if unit else pooled


def _pool_one(hidden: Tensor, lengths: Tensor, mask: Tensor | None, how: str) -> Tensor:
    if how == "cls":
        return hidden[:, 0]
    if how == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    if how == "max":
        return (hidden if mask is None else hidden.masked_fill(~mask[..., None], -torch.inf)).amax(dim=1)
    total = (hidden if mask is None else hidden.masked_fill(~mask[..., None], 0.0)).sum(dim=1)
    count = lengths[:, None].float()
    return total / (count if how == "mean" else count.sqrt())  # the other one is mean_sqrt_len_tokens
