"""Attention of short texts on a CPU, in float32.

Torch's kernel multiplies the matrices of each text and head by themselves, at some microseconds each however small they
are, and its softmax of short rows does not fill the vector registers. NumPy's products of many small matrices cost a
fraction, and with a text's keys as rows softmax goes along its queries. DECISIONS.md has the figures.
"""

import numpy as np
import torch
from torch import Tensor

SHORT_TOKENS_MAX = 31
"""From 32 tokens on torch's own is as fast."""


def short_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, out: Tensor) -> None:
    """Attend within each of n texts of l tokens; query, key, value, out: float32 (n, l, heads, width)."""
    queries, keys, values, outs = (tensor.transpose(1, 2).numpy() for tensor in (query, key, value, out))
    scores = torch.from_numpy(np.matmul(keys, queries.swapaxes(2, 3)))
    weights = scores.mul_(scaling).softmax(2).transpose(2, 3)
    np.matmul(weights.numpy(), values, out=outs)
