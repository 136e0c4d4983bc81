"""Texts in one row without padding: what a batch is to the model, and attention that keeps texts apart in it.

Linear layers, norms and activations work token by token, so they compute exactly the tokens there are. Only attention
has to know where a text ends: a kernel for varying lengths does on a GPU, and where there is none, texts of equal
length, which stand together, are attended to as a batch. Both give what the padded model gives, as a test holds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from encoders.encoder import Tokens
from encoders.short_attention import SHORT_TOKENS_MAX, short_attention

PACKED = "manyray_packed"
"""The name by which transformers' models find `packed_attention`."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Texts one after another, longest first. n texts of T tokens in all.

    ids and positions: int64 (T,). offsets: int32 (n + 1,), where each text begins, and T. All three are on the
    device; lengths, int32 (n,), are the host's, so that a plan never waits for a GPU.
    """

    ids: Tensor
    positions: Tensor
    offsets: Tensor
    lengths: npt.NDArray[np.int32]

    def part(self, start: int, end: int) -> "Packed":
        """The texts from `start` on up to `end`: views, no copies but of the offsets."""
        first, last = int(self.lengths[:start].sum()), int(self.lengths[:end].sum())
        offsets = self.offsets[start : end + 1] - first
        return Packed(self.ids[first:last], self.positions[first:last], offsets, self.lengths[start:end])

    def padded(self, pad_id: int) -> tuple[Tensor, Tensor]:
        """Ids in a row a text, each as long as the first one, and which of them are no padding: both (n, longest)."""
        offsets = self.offsets.long()
        columns = torch.arange(int(self.lengths[0]), device=offsets.device)
        real = columns < offsets.diff()[:, None]
        return self.ids[torch.where(real, offsets[:-1, None] + columns, 0)].masked_fill(~real, pad_id), real


def pack(
    tokens: Tokens, order: npt.NDArray[np.intp], pad_position: int | None, device: torch.device | str = "cpu"
) -> Packed:
    """The texts of `order`, longest first, on a device; a GPU is not waited for.

    pad_position: None counts positions from 0; else from behind it, over tokens whose id is another, as RoBERTa's
    kin do (`create_position_ids_from_input_ids` of transformers).
    """
    starts = np.cumsum(tokens.lengths, dtype=np.int64) - tokens.lengths
    lengths = tokens.lengths[order]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    ids = tokens.ids[np.repeat(starts[order], lengths) + positions]
    if pad_position is not None:
        real = ids != pad_position
        seen = np.concatenate([[0], np.cumsum(real)])
        positions = np.where(real, seen[1:] - np.repeat(seen[offsets[:-1]], lengths), 0) + pad_position

    def there(array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array.astype(np.int32, copy=False))
        pinned = tensor.pin_memory() if torch.device(device).type == "cuda" else tensor
        return pinned.to(device, non_blocking=True)

    return Packed(there(ids).long(), there(positions).long(), there(offsets), lengths)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Packed,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attend within each text of `packed`; query, key, value: (1, heads, T, width), result: (1, T, heads, width).

    sliding_window: a token sees those at less than this distance. NotImplementedError: the model asks for something
    else that changes attention.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise NotImplementedError(name)
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    longest = int(packed.lengths[0])
    window = sliding_window if sliding_window and sliding_window < longest else None
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        # Newer than the oldest torch that does on a CPU.
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415

        back = -1 if window is None else window - 1
        bounds = (packed.offsets, packed.offsets, longest, longest)
        sides = (back, 0 if causal else back)
        attended = varlen_attn(q, k, v, *bounds, scale=scaling, window_size=sides, enable_gqa=True)
        return cast(Tensor, attended)[None], None
    out = torch.empty(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype, device=q.device)
    is_plain = q.device.type == "cpu" and q.dtype == torch.float32 and k.shape == q.shape and not causal
    scale = q.shape[2] ** -0.5 if scaling is None else scaling
    for tokens, shape in _equal_lengths(packed.lengths):
        one, two, three = (tensor[tokens].unflatten(0, shape) for tensor in (q, k, v))
        attended = out[tokens].unflatten(0, shape)
        if is_plain and window is None and shape[1] <= SHORT_TOKENS_MAX:
            short_attention(one, two, three, scale, attended)
            continue
        one, two, three = (tensor.transpose(1, 2) for tensor in (one, two, three))
        mask = _band(shape[1], window, causal, q.device) if window else None
        found = scaled_dot_product_attention(
            one, two, three, attn_mask=mask, scale=scale, is_causal=causal and mask is None, enable_gqa=True
        )
        attended.copy_(found.transpose(1, 2))
    return out[None], None


AttentionInterface.register(PACKED, packed_attention)  # pyright: ignore[reportArgumentType]


def _equal_lengths(lengths: npt.NDArray[np.int32]) -> Iterator[tuple[slice, tuple[int, int]]]:
    """The tokens of each run of texts of one length, and how many of what length they are."""
    start = 0
    for length, texts in groupby(lengths.tolist()):
        count = sum(1 for _ in texts)
        yield slice(start, start + count * length), (count, length)
        start += count * length


def _band(length: int, window: int, causal: bool, device: torch.device) -> Tensor:
    """True where a token (row) sees another (column)."""
    at = torch.arange(length, device=device)
    distance = at[:, None] - at
    return (distance.abs() < window) & (distance >= 0) if causal else distance.abs() < window
