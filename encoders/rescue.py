"""Encoding that loses no window to one of its texts: what does not fit is split, what is not finite is tried alone."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np

from encoders.batching import plan_batches
from encoders.encoder import EncodedBatch, Encoder, Tokens

OUT_OF_MEMORY = "out_of_memory"
"""The device has not the memory for this text alone."""
NOT_FINITE = "not_finite"
"""The vector of this text holds NaN or infinity, also when it is computed alone."""


def encode_each(
    encoder: Encoder,
    tokens: Tokens,
    batch_tokens: int,
    on_batch: Callable[[], object] = lambda: None,
    is_urgent: bool = True,
) -> EncodedBatch:
    """As `Encoder.encode`, but texts that cannot be embedded are in `failed`, and the others have their vectors."""
    encoded = _encode_what_fits(encoder, tokens, batch_tokens, on_batch, is_urgent)
    failed = dict(encoded.failed)
    for row in np.flatnonzero(~np.isfinite(encoded.vectors).all(axis=1)).tolist():
        if row not in failed:
            alone = _encode_what_fits(encoder, tokens.take([row]), batch_tokens, on_batch, is_urgent)
            encoded.vectors[row] = alone.vectors[0]
            if not np.isfinite(alone.vectors).all():
                failed[row] = alone.failed.get(0, NOT_FINITE)
    return replace(encoded, failed=failed)


def _encode_what_fits(
    encoder: Encoder, tokens: Tokens, batch_tokens: int, on_batch: Callable[[], object], is_urgent: bool
) -> EncodedBatch:
    """Encode all at once; where memory does not suffice batch by batch, and a batch in halves, down to one text."""
    with suppress(MemoryError):
        return encoder.encode(tokens, batch_tokens, on_batch, is_urgent)
    count = len(tokens.lengths)
    vectors = np.full((count, encoder.dims), np.nan, np.float32)
    if count == 1:
        return EncodedBatch(vectors, tokens=0, padded_tokens=0, failed={0: OUT_OF_MEMORY})
    batches = plan_batches(tokens.lengths, batch_tokens)
    is_split = len(batches) == 1
    failed: dict[int, str] = {}
    computed = padded = 0
    flops = 0.0
    splits = int(is_split)
    for part in np.array_split(batches[0], 2) if is_split else batches:
        encoded = _encode_what_fits(encoder, tokens.take(part), batch_tokens, on_batch, is_urgent)
        vectors[part] = encoded.vectors
        failed.update({int(part[row]): reason for row, reason in encoded.failed.items()})
        computed, padded = computed + encoded.tokens, padded + encoded.padded_tokens
        flops += encoded.flops
        splits += encoded.splits
    return EncodedBatch(vectors, computed, padded, flops, failed=failed, splits=splits)
