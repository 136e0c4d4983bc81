"""Tiny models with random weights, built here, give sentence-transformers' vectors whatever their shape."""

import json

import numpy as np
import pytest
import torch
from tiny_models import SHAPE, TEXTS, ours, save_bert, save_sentence_bert, save_tokenizer, theirs, write
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model, RobertaConfig, RobertaModel

from encoders import Engine, load_encoder, warm_up
from encoders.transformer import Transformer
from schemas.errors import Fatal


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": True},
        {"pooling_mode_cls_token": True},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_lasttoken": True},
        {"pooling_mode_mean_sqrt_len_tokens": True},
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode": "cls"},
        {"pooling_mode": ["max", "cls"]},
        {"pooling_mode": ["weightedmean", "mean", "lasttoken"]},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("unit", [True, False])
def test_every_pooling_gives_sentence_transformers_vectors(tmp_path, pooling, unit):
    """Each pooling that is accepted is exact, with and without Normalize, alone and concatenated."""
    modules = ("Transformer", "Pooling", "Normalize") if unit else ("Transformer", "Pooling")
    folder = save_sentence_bert(tmp_path, modules=modules, pooling=pooling)
    assert np.allclose(ours(folder), theirs(folder), atol=2e-6)


def test_a_folder_without_modules_is_pooled_by_the_mean(tmp_path):
    """A plain transformers folder: mean, not scaled to length 1, as sentence-transformers does."""
    folder = save_bert(tmp_path)
    assert np.allclose(ours(folder), theirs(folder), atol=2e-6)


def test_a_folder_saved_by_sentence_transformers_is_read(tmp_path):
    """The files of today's sentence-transformers say the same as those of its first versions."""
    from sentence_transformers import SentenceTransformer

    old = save_sentence_bert(tmp_path / "old", pooling={"pooling_mode_max_tokens": True})
    SentenceTransformer(str(old), device="cpu").save(str(tmp_path / "new"))
    assert np.array_equal(ours(old), ours(tmp_path / "new"))


def test_lower_casing_that_a_folder_asks_for_is_done(tmp_path):
    """do_lower_case makes case not matter, as in sentence-transformers."""
    folder = save_sentence_bert(tmp_path, options={"do_lower_case": True})
    vectors = ours(folder, ["ABC DEF", "abc def"])
    assert np.array_equal(vectors[0], vectors[1])
    assert np.allclose(ours(folder), theirs(folder), atol=2e-6)


def test_positions_that_are_counted_from_the_padding_on(tmp_path):
    """RoBERTa of 43 positions, 1 of them for padding, takes 42 tokens and not one more."""
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=150, max_position_embeddings=43, pad_token_id=0, **SHAPE)
    RobertaModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, most=42)
    assert np.allclose(ours(tmp_path), theirs(tmp_path), atol=2e-6)
    ours(tmp_path, max_tokens=42)
    with pytest.raises(Fatal, match=r"max_tokens=43 .* 42 positions"):
        ours(tmp_path, max_tokens=43)


def test_a_causal_model_is_pooled_by_its_last_token(tmp_path):
    """A plain causal folder: the last token's vector, though we pad on the right and others on the left."""
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=150, max_position_embeddings=40, num_key_value_heads=2, pad_token_id=0, **SHAPE)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, marks=False, padding_side="left")
    texts = TEXTS[1:]
    assert np.allclose(ours(tmp_path, texts), theirs(tmp_path, texts), atol=2e-6)


def test_a_text_of_no_tokens_has_a_vector(tmp_path):
    """Without special tokens an empty text has no token at all: it is read as one padding token, and is finite."""
    folder = save_bert(tmp_path, marks=False)
    vectors = ours(folder, ["", "abc", ""])
    assert np.isfinite(vectors).all()
    assert np.allclose(vectors[0], vectors[2], atol=1e-6)


def test_max_tokens_cuts_texts(tmp_path):
    """No text has more than max_tokens tokens, and what is cut off does not matter."""
    folder = save_bert(tmp_path)
    encoder = load_encoder(str(folder), max_tokens=8, device="cpu")
    tokens = encoder.tokenise(["a b c d e f", "a b c d e f g h i", ""])
    assert tokens.lengths.tolist() == [8, 8, 2]
    vectors = encoder.encode(tokens, 64).vectors
    assert np.allclose(vectors[0], vectors[1], atol=1e-6)


@pytest.mark.parametrize(("max_tokens", "said"), [(2, "raise it"), (41, "40 positions")])
def test_max_tokens_that_cannot_be_are_refused(tmp_path, max_tokens, said):
    """More than the model's positions, or no more than the special tokens: both are refused at load."""
    with pytest.raises(Fatal, match=said):
        ours(save_bert(tmp_path), max_tokens=max_tokens)


def test_a_model_without_any_limit_needs_max_tokens(tmp_path):
    """Where neither tokenizer, folder nor positions say where to cut, the setting must."""
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=150, num_key_value_heads=2, pad_token_id=0, **SHAPE)
    Qwen2Model(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, most=None)
    settings = json.loads((tmp_path / "config.json").read_text())
    write(tmp_path / "config.json", {**settings, "max_position_embeddings": -1})
    with pytest.raises(Fatal, match="set max_tokens"):
        ours(tmp_path)
    assert ours(tmp_path, ["abc"], max_tokens=20).shape == (1, 32)


def test_bfloat16_is_close_and_is_another_version(tmp_path):
    """An explicit dtype is computed in on any device, comes out as float32, and has a version of its own."""
    folder = save_sentence_bert(tmp_path)
    full, half = ours(folder, dtype="float32"), ours(folder, dtype="bfloat16")
    assert not np.allclose(full, half, atol=2e-6)
    assert (full * half).sum(axis=1).min() > 0.99
    versions = {load_encoder(str(folder), dtype=dtype, device="cpu").spec.version for dtype in ("float32", "bfloat16")}
    assert len(versions) == 2


@pytest.mark.parametrize(
    ("flags", "is_told"), [({"avx512_bf16": False}, True), ({"amx_bf16": True}, False), ({}, False)]
)
def test_a_processor_without_bfloat16_is_told_of(tmp_path, monkeypatch, caplog, flags, is_told):
    """Vectors are the same there, but float32 is faster: a warning where the processor is known to have none."""
    known = {"architecture": "x86_64", **flags} if flags else {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    folder = str(save_bert(tmp_path))
    load_encoder(folder, dtype="bfloat16", device="cpu")
    assert ("dtype=bfloat16 is slower than float32" in caplog.text) == is_told
    caplog.clear()
    load_encoder(folder, dtype="float32", device="cpu")
    assert not caplog.text


def test_tokens_are_counted_as_planned(tmp_path):
    """Tokens are the real ones, and a packed model computes no others."""
    encoder = load_encoder(str(save_bert(tmp_path)), device="cpu")
    tokens = encoder.tokenise(TEXTS)
    encoded = encoder.encode(tokens, 64)
    assert encoded.tokens == encoded.padded_tokens == tokens.lengths.sum() == len(tokens.ids)


def test_no_texts_are_no_vectors(tmp_path):
    """An empty window is (0, dims), and warming up changes nothing."""
    encoder = load_encoder(str(save_bert(tmp_path)), device="cpu")
    warm_up(encoder, 64)
    assert encoder.encode(encoder.tokenise([]), 64).vectors.shape == (0, 32)


def cramped(monkeypatch, most, error):
    """From now on the model raises `error` for a batch of more than `most` tokens, as a device short of memory does."""
    run = Transformer.run

    def cramped_run(self, batch):
        if batch.ids.numel() > most:
            raise error
        return run(self, batch)

    monkeypatch.setattr(Transformer, "run", cramped_run)


WANTING = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", WANTING, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_split(tmp_path, monkeypatch, error):
    """In whatever way memory is wanting, all texts have their vectors, and one that alone is too long says so."""
    encoder = load_encoder(str(save_bert(tmp_path)), device="cpu")
    expected = encoder.encode(encoder.tokenise(TEXTS), 64).vectors
    longest = TEXTS.index("word " * 200)
    with Engine(encoder, 10_000) as engine:
        cramped(monkeypatch, 39, error)
        encoded = engine.submit(TEXTS).result(60)
    assert encoded.failed == {longest: "out_of_memory"}
    assert encoded.splits > 0
    fine = [row for row in range(len(TEXTS)) if row != longest]
    assert np.allclose(encoded.vectors[fine], expected[fine], atol=2e-6)


def test_another_error_of_torch_is_not_taken_for_want_of_memory(tmp_path, monkeypatch):
    """As an index out of range, or an assertion on the device: no smaller batch helps."""
    encoder = load_encoder(str(save_bert(tmp_path)), device="cpu")
    cramped(monkeypatch, 0, RuntimeError("CUDA error: device-side assert triggered"))
    with Engine(encoder, 64) as engine, pytest.raises(RuntimeError, match="device-side assert"):
        engine.submit(TEXTS).result(60)


def test_a_missing_weight_is_refused(tmp_path):
    """transformers would fill it with random numbers; an absent pooler, never read, is fine."""
    from safetensors.torch import load_file, save_file

    path = save_bert(tmp_path) / "model.safetensors"
    weights = load_file(path)
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    expected = ours(tmp_path)
    save_file(kept, path, {"format": "pt"})
    assert np.array_equal(ours(tmp_path), expected)
    del kept["encoder.layer.1.output.dense.weight"]
    save_file(kept, path, {"format": "pt"})
    with pytest.raises(Fatal, match=r"1 weights lack or do not fit, as encoder\.layer\.1\.output\.dense\.weight"):
        ours(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path):
    """By the name of one of them, as they belong to another model."""
    save_bert(tmp_path)
    edit_config(tmp_path, intermediate_size=32)
    with pytest.raises(Fatal, match=r"weights lack or do not fit, as encoder\.layer\.0\."):
        ours(tmp_path)


def test_a_model_of_more_than_text_is_refused(tmp_path):
    """CLIP has no one width of hidden states: it is told so, in words."""
    from transformers import CLIPConfig, CLIPModel

    small = {**SHAPE, "vocab_size": 150, "image_size": 8, "patch_size": 4, "projection_dim": 8}
    CLIPModel(CLIPConfig(text_config=small, vision_config=small)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(Fatal, match="a text encoder with a fast tokenizer is needed"):
        ours(tmp_path)


def edit_config(folder, **changed):
    """Change config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_broken_weights_are_refused_in_words(tmp_path):
    """A cut file is a Fatal that names the folder, not a stack of another library's."""
    path = save_bert(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(Fatal, match=str(tmp_path)):
        ours(tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "tpu", "cuda:-1", ""])
def test_a_device_that_is_not_here_is_refused(tmp_path, device):
    """The message names the setting, its value, and what there is."""
    with pytest.raises(Fatal, match=rf"device={device} .*cpu"):
        load_encoder(str(save_bert(tmp_path)), device=device)
