"""From settings to an encoder that is ready: the one step that may use the network, and for a hub id only."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from encoders.device import BATCH_TOKENS_MIN
from encoders.encoder import Encoder
from encoders.golden import check_golden, golden_of
from encoders.hashing import HashEncoder
from encoders.model_spec import ModelSpec, model_spec
from encoders.source import FolderSource, HashSource, HubSource, parse_source
from encoders.version import resolve_spec
from schemas.errors import Fatal

_log = logging.getLogger("manyray.encode")


def load_encoder(model: str | ModelSpec = "minilm", *, device: str = "auto", **choices: Any) -> Encoder:
    """Load the encoder that a spec names; its `spec` is what `resolve_spec` says for the same one.

    `choices` are those of `ModelSpec`, for a model's name.
    Fatal: as `resolve_spec` and `TextEncoder`, a hub model or revision that is not there, or vectors that are not
    those of the spec's `golden`. Retry: the hub cannot be reached.
    """
    wanted = model if isinstance(model, ModelSpec) else model_spec(model, **choices)
    spec = resolve_spec(wanted)
    source = parse_source(wanted.model, wanted.revision)
    if isinstance(source, HashSource):
        encoder: Encoder = HashEncoder(spec, source.dims)
    else:
        from encoders.text import TextEncoder  # noqa: PLC0415 - imports torch, which other roles do without

        encoder = TextEncoder(
            spec, find_folder(source), device, graph=wanted.graph, matryoshka_dims=wanted.matryoshka_dims
        )
    check_golden(encoder, golden_of(wanted))
    return encoder


def find_folder(source: FolderSource | HubSource) -> Path:
    """The folder of a model, fetched from the hub unless it is there. Fatal, Retry: as `load_encoder`."""
    if isinstance(source, FolderSource):
        return source.folder
    from encoders.hub import download  # noqa: PLC0415 - the network's library, for a hub id only

    return download(source.repo, source.revision)


def warm_up(encoder: Encoder, batch_tokens: int = 1_024) -> int:
    """Encode short and long texts once, to pay for first-use costs before the first post does.

    Returns the tokens of a batch that fit the device's memory: `batch_tokens`, or a half, a quarter and so on.
    Fatal: not even `BATCH_TOKENS_MIN` do, or a vector is not finite: later either would look like the fault of posts.
    """
    texts = ["", "a short text", *["word " * 125] * max(1, batch_tokens // 128)]
    try:
        vectors = encoder.encode(encoder.tokenise(texts), batch_tokens).vectors
    except MemoryError as error:
        if batch_tokens <= BATCH_TOKENS_MIN:
            raise Fatal(f"the device has not the memory for this model: choose another of either ({error})") from error
        return warm_up(encoder, max(BATCH_TOKENS_MIN, batch_tokens // 2))
    if not np.isfinite(vectors).all():
        raise Fatal("the model gives numbers that are not finite for plain words: check its weights, or set dtype")
    return batch_tokens


def measure_peak(encoder: Encoder) -> float:
    """The FLOP a second that an encoder's device reaches, for a metric; 0 where that is not known. Raises nothing."""
    try:
        return encoder.peak_flops_per_s()
    except Exception:  # a figure that is missing ends no role
        _log.debug("the peak of the device was not measured", exc_info=True)
        return 0.0
