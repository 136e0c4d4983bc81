"""What is known of a model without its weights: tokenizer, limits, sizes. No network, no code of the folder's own."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Normalizer, Sequence
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

from encoders.model_folder import ModelFolder
from schemas.errors import Fatal

LOCAL = {"local_files_only": True, "trust_remote_code": False}
"""For everything of transformers' that loads: what a folder's configuration names may be code to download."""
_NO_LIMIT = 10**9  # more than this is what a tokenizer says that knows no limit


@dataclass(frozen=True, slots=True)
class Outline:
    """A model's tokenizer, which cuts at `max_tokens` and pads nothing, and what a batch of its tokens has to know.

    pad_id: what to pad ids with. pad_position: as in `packing.pack`. width: the dims of a token's vector. vocabulary:
    every id is less.
    """

    tokenizer: Tokenizer
    pad_id: int
    pad_position: int | None
    max_tokens: int
    width: int
    vocabulary: int


def read_outline(folder: ModelFolder, max_tokens: int | None = None, side: str | None = None) -> Outline:
    """Read a folder's configuration and tokenizer; longer texts are cut on the `side` given.

    Fatal: transformers cannot load them, the model is an encoder-decoder, its tokenizer is not a fast one or marks
    segments, or `max_tokens` is more than it has positions for or less than its special tokens.
    """
    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder.weights, **LOCAL)
            auto = AutoTokenizer.from_pretrained(folder.weights, **LOCAL)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise Fatal(f"model={folder.weights}: transformers cannot load it: {error}") from error
        if not hasattr(config, "hidden_size") or config.is_encoder_decoder or not auto.is_fast:
            raise Fatal(f"model={folder.weights}: a text encoder with a fast tokenizer is needed: choose another model")
        with torch.device("meta"):  # shapes alone
            model = AutoModel.from_config(config, trust_remote_code=False)
    # RoBERTa's kin count positions from behind the padding's id on, and never use those before.
    pad_position = cast(int | None, getattr(getattr(model, "embeddings", None), "padding_idx", None))
    tokenizer = cast(Tokenizer, auto.backend_tokenizer)
    if folder.lower_case:
        tokenizer.normalizer = _lower_case_first(tokenizer.normalizer)
    positions = _positions(getattr(config, "max_position_embeddings", None), pad_position)
    limit = token_limit(max_tokens or folder.max_tokens, auto.model_max_length, positions)
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if limit <= special:
        raise Fatal(f"max_tokens={limit} leaves no room beside {special} special tokens: raise it")
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit, direction=side or auto.truncation_side)
    if any(tokenizer.encode("a").type_ids):
        raise Fatal(f"model={folder.weights}: it needs segment ids, which are not given: choose another model")
    pad_id = next((pad for pad in (auto.pad_token_id, config.pad_token_id) if isinstance(pad, int)), 0)
    return Outline(tokenizer, pad_id, pad_position, limit, config.hidden_size, config.vocab_size)


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


@contextmanager
def quiet() -> Generator[None]:
    """Hold back transformers' progress bars and warnings: what matters of its report is checked instead."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):  # as of what a model's code uses of torch
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _positions(named: int | None, pad_position: int | None) -> int | None:
    """How many tokens the model has positions for; None: any number, as far as its configuration says."""
    if named is None or named < 0:
        return None
    return named if pad_position is None else named - pad_position - 1


def _lower_case_first(normalizer: Normalizer | None) -> Normalizer:
    """As sentence-transformers does where a folder sets do_lower_case; lowering twice changes nothing."""
    return Sequence([Lowercase(), *([normalizer] if normalizer else [])])
