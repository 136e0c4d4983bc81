"""What the encoder's benchmark computes, real posts in their mix of lengths or of one length, and with what model."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, BertConfig, PretrainedConfig, XLMRobertaConfig

from encoders.batching import Lengths
from encoders.load import find_folder, load_encoder, warm_up
from encoders.model_spec import ModelSpec, model_spec
from encoders.outline import Outline
from encoders.source import FolderSource, HashSource, parse_source
from encoders.text import TextEncoder
from encoders.transformer import Transformer
from schemas.errors import Fatal

_ROOT = Path(__file__).parent.parent
TWEETS = _ROOT.parent / "shared" / "data" / "tweeteval"
_SAMPLE = _ROOT / "manyray" / "sample_posts.txt"
_JOINED_POSTS = 5_000
"""Posts whose words make texts of a given length: enough that few such texts are equal."""
_SPARE = 3.0
"""Texts are made in so many times the number wanted, as those whose length is missed are left out."""

_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3_072}
_LARGE = {"hidden_size": 1_024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4_096}
_XLM_R = {"vocab_size": 250_002, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 0}
SIZES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "minilm": (BertConfig, {**_BASE, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1_536}),
    "base": (BertConfig, _BASE),
    "xlm-r-base": (XLMRobertaConfig, {**_XLM_R, **_BASE}),
    "xlm-r-large": (XLMRobertaConfig, {**_XLM_R, **_LARGE}),
}
RANDOM = "random:"
_LONGEST = 512
"""Tokens at which texts are cut, so that long ones are measured; fewer where the model has fewer positions."""


@dataclass(frozen=True, slots=True)
class Posts:
    """Texts, and where they come from, for a reader of the figures."""

    texts: list[str]
    source: str


def draw_posts(folder: Path, count: int, seed: int = 1) -> Posts:
    """Draw `count` lines of a folder's `*_text.txt`, some of them twice where it has fewer.

    Where there is no such file, sample posts stand in, made distinct by a number; their lengths are not tweets'.
    """
    random = np.random.default_rng(seed)
    paths = sorted(folder.rglob("*_text.txt"))
    tweets = [line for path in paths for line in path.read_text(encoding="utf-8").split("\n") if line]
    if tweets:
        drawn = random.choice(len(tweets), count, replace=count > len(tweets)).tolist()
        return Posts([tweets[index] for index in drawn], f"tweets of {len(tweets):,}")
    lines = _SAMPLE.read_text(encoding="utf-8").splitlines()
    drawn = random.integers(0, len(lines), count).tolist()
    texts = [f"{lines[index]} {number}" for number, index in enumerate(drawn)]
    return Posts(texts, f"sample posts, as there are no tweets in {folder} (--tweets)")


def texts_between(
    least: int, most: int, tokens: int, posts: list[str], lengths_of: Callable[[list[str]], Lengths]
) -> list[str]:
    """Texts of `least` to `most` tokens, about `tokens` in all: posts that are so long, and words of posts joined.

    lengths_of: counts the tokens of texts. Fewer come where the words there are do not make such texts.
    """
    found = _between(least, most, posts, lengths_of(posts))
    missing = tokens - int(lengths_of(found).sum()) if found else tokens
    if missing > 0:
        wanted = int(_SPARE * missing / ((least + most) / 2)) + 1
        made = _joined(least, most, wanted, posts[:_JOINED_POSTS], lengths_of)
        found += _between(least, most, made, lengths_of(made))
    ends = np.cumsum(lengths_of(found)) if found else np.empty(0)
    return found[: int(np.searchsorted(ends, tokens)) + 1]


def _between(least: int, most: int, texts: list[str], lengths: Lengths) -> list[str]:
    return [texts[index] for index in np.flatnonzero((lengths >= least) & (lengths <= most)).tolist()]


def _joined(
    least: int, most: int, count: int, posts: list[str], lengths_of: Callable[[list[str]], Lengths]
) -> list[str]:
    """`count` texts of words of posts, of lengths drawn from `least` to `most` tokens: about, as words are counted."""
    words = " ".join(posts).split()
    special = int(lengths_of([""])[0])
    bounds = np.concatenate([[0], np.cumsum(np.maximum(1, lengths_of(words) - special))])
    random = np.random.default_rng(least)
    texts: list[str] = []
    start = 0
    for target in random.integers(least, most + 1, count).tolist():
        end = int(np.searchsorted(bounds, bounds[start] + max(1, target - special), side="right")) - 1
        end = max(end, start + 1)
        texts.append(" ".join(words[start:end]))
        start = end if end < len(words) else 0
    return texts


def find_model(name: str, scratch: Path) -> tuple[ModelSpec, Path]:
    """A model's spec and folder; one with random weights is made in `scratch`.

    Fatal: as `model_spec` and `parse_source`. SystemExit: there is no such random model, or it is the hash encoder.
    """
    if name.startswith(RANDOM):
        folder = _random_model(name, scratch / "model")
        return ModelSpec(str(folder)), folder
    spec = model_spec(name)
    source = parse_source(spec.model, spec.revision)
    if isinstance(source, HashSource):
        raise SystemExit(f"--model {name} computes no layers: set it to a model")
    return spec, find_folder(source)


def load(spec: ModelSpec, device: str, dtype: str) -> TextEncoder:
    """Load a model that computes in `dtype`, warm, with the largest batches up to its device's that fit the memory."""
    chosen = replace(spec, dtype=dtype)
    try:
        encoder = load_encoder(replace(chosen, max_tokens=spec.max_tokens or _LONGEST), device=device)
    except Fatal:  # it has fewer positions than that; or the next line says what else is wrong
        encoder = load_encoder(chosen, device=device)
    assert isinstance(encoder, TextEncoder)
    encoder.batch_tokens = warm_up(encoder, encoder.batch_tokens)
    return encoder


def transformer_of(encoder: TextEncoder) -> Transformer:
    """The part of an encoder on torch that its users need not see."""
    backend = encoder._backend  # pyright: ignore[reportPrivateUsage]
    assert isinstance(backend, Transformer)
    return backend


def outline_of(encoder: TextEncoder) -> Outline:
    """What an encoder knows of its model besides the weights."""
    return encoder._outline  # pyright: ignore[reportPrivateUsage]


def make_padded(encoder: TextEncoder) -> TextEncoder:
    """Let an encoder, whose model nobody else uses, make each batch as wide as its longest text."""
    transformer = transformer_of(encoder)
    if transformer.is_packed:
        transformer.model.set_attn_implementation("sdpa")
    encoder._backend = replace(transformer, is_packed=False)  # pyright: ignore[reportPrivateUsage]
    return encoder


def _random_model(name: str, folder: Path) -> Path:
    """Write a model of a real size with random weights and the carried tokenizer; speed needs no training.

    Fatal: the carried model is not installed. SystemExit: the name is unknown.
    """
    size = name.removeprefix(RANDOM)
    if size not in SIZES:
        raise SystemExit(f"--model {name} is unknown: set it to {', '.join(RANDOM + each for each in SIZES)}")
    kind, settings = SIZES[size]
    carried = parse_source("minilm")
    assert isinstance(carried, FolderSource)
    shutil.copytree(carried.folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "README.md"))
    shutil.copytree(carried.folder / "1_Pooling", folder / "1_Pooling", dirs_exist_ok=True)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512, "do_lower_case": False}))
    torch.manual_seed(0)
    AutoModel.from_config(kind(**settings)).save_pretrained(folder)
    return folder
