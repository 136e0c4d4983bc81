"""From one vector a token to one a text. Formulas: sentence-transformers' Pooling."""

import torch
from torch import Tensor

from encoders.model_folder import POOLINGS


def pool(hidden: Tensor, offsets: Tensor, poolings: tuple[str, ...], skipped: int = 0) -> Tensor:
    """Pool `hidden` (T, d), texts one after another, to float32 (n, d x poolings).

    offsets: (n + 1,), where each text begins, and T; no text is empty. poolings: some of `POOLINGS`. skipped: a
    prompt's tokens at the begin of each text, which do not count, but where a text has no others. Sums are
    float32 whatever the model computes in, and in the order of the tokens: no vector depends on its neighbours.
    """
    hidden, offsets = hidden.float(), offsets.long()
    starts, ends = offsets[:-1], offsets[1:]
    firsts = torch.where(ends - starts > skipped, starts + skipped, starts)
    # Segments of what is skipped and of what counts, in turn.
    bounds = torch.cat([torch.stack([starts, firsts], dim=1).flatten(), offsets[-1:]])

    def reduce(how: str, rows: Tensor = hidden) -> Tensor:
        return torch.segment_reduce(rows, how, offsets=bounds, axis=0, unsafe=True)[1::2]

    def pool_one(how: str) -> Tensor:
        if how == "cls":
            return hidden[firsts]
        if how == "lasttoken":
            return hidden[ends - 1]
        if how == "max":
            return reduce("max")
        if how == "weightedmean":
            within = torch.arange(len(hidden), device=hidden.device)
            weights = (within - torch.repeat_interleave(starts, ends - starts, output_size=len(hidden)) + 1)[:, None]
            return reduce("sum", hidden * weights) / reduce("sum", weights.float())
        counts = (ends - firsts)[:, None].float()
        return reduce("sum") / (counts if how == "mean" else counts.sqrt())  # the other is mean_sqrt_len_tokens

    assert set(poolings) <= set(POOLINGS)
    return torch.cat([pool_one(how) for how in poolings], dim=-1)
