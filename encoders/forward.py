"""A batch through a transformer, in one row or padded, and whether a model can do the first."""

import logging
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from encoders.encoder import Tokens
from encoders.outline import quiet
from encoders.packing import PACKED, Packed, pack

_log = logging.getLogger("manyray.encode")

_TRIED_LENGTHS = (24, 9, 9, 2, 1)
_COSINE_MIN = 0.99
"""Of a token's two vectors: another text's tokens, or another position, move it much further."""


def run_packed(model: PreTrainedModel, batch: Packed) -> Tensor:
    """As `Backend.run`, in one row."""
    found = model(input_ids=batch.ids[None], position_ids=batch.positions[None], packed=batch, **cacheless(model))
    return found.last_hidden_state[0]


def run_padded(model: PreTrainedModel, batch: Packed, pad_id: int) -> Tensor:
    """As `Backend.run`, in a row a text."""
    ids, real = batch.padded(pad_id)
    # No mask where nothing is padded: attention is then free to take its faster way.
    mask = None if batch.lengths[-1] == batch.lengths[0] else real.long()
    hidden = model(input_ids=ids, attention_mask=mask, **cacheless(model)).last_hidden_state
    return hidden.flatten(0, 1) if mask is None else hidden[real]


def cacheless(model: PreTrainedModel) -> dict[str, bool]:
    """Decoders keep keys and values for a next token, which never comes."""
    return {"use_cache": False} if hasattr(model.config, "use_cache") else {}


@torch.inference_mode()
def try_packing(model: PreTrainedModel, pad_id: int, pad_position: int | None, longest: int) -> bool:
    """Switch a model to packed attention, if it then computes what it does padded: found by trying it on five texts.

    Families differ in whether they take an attention of ours, positions, and a row of several texts, and new ones will.
    So do GPUs and versions of torch in whether they have a kernel for it.
    """
    lengths = np.minimum(np.array(_TRIED_LENGTHS, np.int32), longest)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, int(lengths.sum()))
    batch = pack(Tokens(lengths, ids), np.arange(len(lengths)), pad_position, model.device)
    before = cast(str, model.config._attn_implementation)  # pyright: ignore[reportPrivateUsage]
    expected = run_padded(model, batch, pad_id)
    try:
        with quiet():  # it warns of a model that does not take one
            model.set_attn_implementation(PACKED)
        found = run_packed(model, batch)
        if found.shape == expected.shape and cosine_similarity(found.float(), expected.float()).min() >= _COSINE_MIN:
            return True
        why = "its vectors would be others"
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    _log.info("texts of a batch are padded to its longest, as %s cannot be packed: %s", type(model).__name__, why)
    model.set_attn_implementation(before)
    return False
