"""Loads a transformer and its tokenizer from a folder: no network, no code of the folder's own, no pickle."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Normalizer, Sequence
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from encoders.device import BATCH_TOKENS_CPU
from encoders.forward import run_packed, run_padded, try_packing
from encoders.linear import lay_out_linears
from encoders.model_folder import ModelFolder
from encoders.packing import Packed
from schemas.errors import Fatal

_NO_LIMIT = 10**9  # more than this is what a tokenizer says that knows no limit


@dataclass(frozen=True, slots=True)
class Transformer:
    """A model on its device, and its tokenizer, which cuts at `max_tokens` and pads nothing.

    pad_id: what to pad ids with. pad_position: as in `packing.pack`. width: the dims of a token's vector. is_packed: it
    computes the tokens there are, and else pads a batch to its longest text.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    pad_id: int
    pad_position: int | None
    max_tokens: int
    width: int
    is_packed: bool

    def run(self, batch: Packed) -> Tensor:
        """Last hidden states (T, width) of texts of T tokens in all, one after another."""
        if self.is_packed:
            return run_packed(self.model, batch)
        return run_padded(self.model, batch, self.pad_id)


def load_transformer(
    folder: ModelFolder, max_tokens: int | None, dtype: torch.dtype, device: torch.device, side: str | None = None
) -> Transformer:
    """Load the folder's transformer, to compute in `dtype` on `device`; longer texts are cut on the `side` given.

    Fatal: transformers cannot load it, weights are missing, it is an encoder-decoder, its tokenizer is not a fast
    one or marks segments, or `max_tokens` is more than it has positions for or less than its special tokens.
    """
    with _quiet():
        try:
            model, auto = _load(folder, dtype)
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            raise Fatal(f"model={folder.weights}: transformers cannot load it: {error}") from error
    if not hasattr(model.config, "hidden_size") or model.config.is_encoder_decoder or not auto.is_fast:
        raise Fatal(f"model={folder.weights}: a text encoder with a fast tokenizer is needed: choose another model")
    tokenizer = cast(Tokenizer, auto.backend_tokenizer)
    if folder.lower_case:
        tokenizer.normalizer = _lower_case_first(tokenizer.normalizer)
    limit = token_limit(max_tokens or folder.max_tokens, auto.model_max_length, _positions(model))
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if limit <= special:
        raise Fatal(f"max_tokens={limit} leaves no room beside {special} special tokens: raise it")
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit, direction=side or auto.truncation_side)
    if any(tokenizer.encode("a").type_ids):
        raise Fatal(f"model={folder.weights}: it needs segment ids, which are not given: choose another model")
    pad_id = next((pad for pad in (auto.pad_token_id, model.config.pad_token_id) if isinstance(pad, int)), 0)
    model = model.to(device)  # pyright: ignore[reportArgumentType]
    pad_position = _pad_position(model)
    is_packed = try_packing(model, pad_id, pad_position, limit)
    if device.type == "cpu":
        lay_out_linears(model, BATCH_TOKENS_CPU)
    return Transformer(model, tokenizer, pad_id, pad_position, limit, model.config.hidden_size, is_packed)


def token_limit(chosen: int | None, tokenizer_most: int, positions: int | None) -> int:
    """Say where to cut texts: where the setting or the folder chose, else at the least of the other limits.

    Fatal: more than the model's positions, or no limit anywhere.
    """
    limit = chosen or min(tokenizer_most, positions or tokenizer_most)
    if positions is not None and limit > positions:
        raise Fatal(f"max_tokens={limit} is more than the model's {positions} positions: set it to those or less")
    if limit > _NO_LIMIT:
        raise Fatal("max_tokens is not set, and the model names no limit of its own: set max_tokens")
    return limit


def _load(folder: ModelFolder, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    local = {"local_files_only": True, "trust_remote_code": False}
    # Weights of another shape are told below, by name.
    reported = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    how = {**local, **reported, "use_safetensors": True, "dtype": dtype}
    # Named here, as what a folder's configuration names may be code to download.
    try:
        model, report = AutoModel.from_pretrained(folder.weights, attn_implementation="sdpa", **how)
    except ValueError:  # a few architectures have no sdpa
        model, report = AutoModel.from_pretrained(folder.weights, attn_implementation="eager", **how)
    # transformers fills a missing weight with random numbers. The pooler is the one part we never read.
    wrong = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    wrong += [key for key, *_ in report["mismatched_keys"]]
    if wrong:
        raise Fatal(f"model={folder.weights}: {len(wrong)} weights lack or do not fit, as {min(wrong)}: fetch it again")
    return model.eval(), AutoTokenizer.from_pretrained(folder.weights, **local)


def _positions(model: PreTrainedModel) -> int | None:
    """How many tokens the model has positions for; None: any number, as far as its configuration says."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions < 0:
        return None
    unused = _pad_position(model)
    return positions if unused is None else positions - unused - 1


def _pad_position(model: PreTrainedModel) -> int | None:
    """RoBERTa's kin count positions from behind the padding's id on, and never use those before."""
    return getattr(getattr(model, "embeddings", None), "padding_idx", None)


def _lower_case_first(normalizer: Normalizer | None) -> Normalizer:
    """As sentence-transformers does where a folder sets do_lower_case; lowering twice changes nothing."""
    return Sequence([Lowercase(), *([normalizer] if normalizer else [])])


@contextmanager
def _quiet() -> Generator[None]:
    """Hold back transformers' progress bars and warnings: what matters of its report is checked instead."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
