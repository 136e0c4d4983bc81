"""Each family of models, packed where it can be, gives sentence-transformers' vectors; all are tiny and random."""

import numpy as np
import pytest
import torch
import transformers
from tiny_models import SHAPE, TEXTS, ours, save_tokenizer, theirs, write

from encoders import load_encoder
from encoders.batching import padded_tokens, plan_batches, windows
from encoders.device import resolve_device
from encoders.encoder import Tokens
from encoders.engine import Engine
from encoders.forward import run_padded
from encoders.model_folder import read_model_folder
from encoders.outline import read_outline
from encoders.packing import pack
from encoders.transformer import load_transformer

PLAIN = {"vocab_size": 150, "max_position_embeddings": 42, "pad_token_id": 0}
DECODER = {**PLAIN, **SHAPE, "num_key_value_heads": 1, "head_dim": 16, "bos_token_id": 2, "eos_token_id": 3}
MODERN = {**PLAIN, **SHAPE, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}

# Family, configuration, whether it is packed, pooling.
FAMILIES = {
    "Bert": (PLAIN | SHAPE, True, "mean"),
    "Roberta": (PLAIN | SHAPE, True, "cls"),
    "XLMRoberta": (PLAIN | SHAPE | {"pad_token_id": 1}, True, "mean"),
    "DistilBert": (PLAIN | {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}, True, "mean"),
    "Electra": (PLAIN | SHAPE | {"embedding_size": 16}, True, "mean"),
    "Albert": (PLAIN | SHAPE | {"embedding_size": 16}, True, "mean"),
    "Camembert": (PLAIN | SHAPE, True, "mean"),
    "MPNet": (PLAIN | SHAPE, False, "mean"),
    "DebertaV2": (PLAIN | SHAPE | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, False, "mean"),
    "ModernBert": (MODERN | {"local_attention": 8, "global_attn_every_n_layers": 2}, True, "cls"),
    "NomicBert": (PLAIN | SHAPE, True, "mean"),
    "EuroBert": (DECODER | {"num_key_value_heads": 2}, True, "mean"),
    "Qwen2": (DECODER | {"num_key_value_heads": 2}, True, "lasttoken"),
    "Qwen3": (DECODER, True, "lasttoken"),
    "Gemma3Text": (DECODER | {"use_bidirectional_attention": True, "sliding_window": 6}, True, "mean"),
    "Llama": (DECODER, True, "lasttoken"),
    "Mistral": (DECODER | {"sliding_window": 7}, True, "lasttoken"),
}


def save_family(folder, family, *, pooling=None):
    """Write a sentence-transformers folder with a tiny model of a family."""
    config, _, usual = FAMILIES[family]
    torch.manual_seed(0)
    made = getattr(transformers, family + "Config")(**config)
    model = getattr(transformers, family + "Model")(made)
    for parameter in model.parameters():  # what is 0 or 1 at first, as biases and norms, is so in no trained model
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    causal = usual == "lasttoken"
    save_tokenizer(folder, marks=not causal, padding_side="left" if causal else "right")
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds)
    ]
    write(folder / "modules.json", listed)
    width = config.get("hidden_size", 32)
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, "pooling_mode": pooling or usual})
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_sentence_transformers_vectors(tmp_path, family):
    """Mixed lengths, empty and over-long texts: cosine at least 0.99999 in float32."""
    folder = save_family(tmp_path, family)
    texts = TEXTS if FAMILIES[family][2] != "lasttoken" else TEXTS[1:]  # no token at all: theirs fails
    assert (ours(folder, texts) * theirs(folder, texts)).sum(axis=1).min() >= 0.99999


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_packed_where_they_can_be(tmp_path, family):
    """Who takes an attention of ours computes no padding; MPNet and DeBERTa have their own, and are padded."""
    encoder = load_encoder(str(save_family(tmp_path, family)), device="cpu")
    encoded = encoder.encode(encoder.tokenise(TEXTS), 64)
    assert (encoded.padded_tokens == encoded.tokens) == FAMILIES[family][1]
    assert encoded.padded_tokens >= encoded.tokens


def test_a_twentieth_of_what_is_computed_is_padding(tmp_path, tweets):
    """At most, of tweets by a real tokenizer in windows as the pipeline makes them, where a model has to be padded."""
    padded, tokenise = load_encoder(str(save_family(tmp_path, "MPNet")), device="cpu"), load_encoder("minilm").tokenise
    with Engine(padded, padded.batch_tokens) as engine:
        lengths = [tokenise(window).lengths for window in windows(tweets[::20], engine.window_tokens)]
    plans = [plan_batches(some, padded.batch_tokens, padded=True, workers=padded.workers) for some in lengths]
    computed = sum(map(padded_tokens, lengths, plans))
    assert 0 < 1 - np.concatenate(lengths).sum() / computed <= 0.05


@pytest.mark.parametrize("error", [ImportError, RuntimeError, TypeError])
def test_texts_are_padded_where_attention_has_no_kernel_for_a_row(tmp_path, monkeypatch, caplog, error):
    """A GPU or a torch too old for it is told of in the log, and the vectors stay what they are."""

    def missing(*_):
        raise error("no kernel for this device\nCompile with more")

    monkeypatch.setattr("encoders.packing.short_attention", missing)
    caplog.set_level("INFO")
    folder = save_family(tmp_path, "Bert")
    assert (ours(folder) * theirs(folder)).sum(axis=1).min() >= 0.99999
    (line,) = [record.getMessage() for record in caplog.records if record.name == "manyray.encode"]
    assert line.endswith(f"as BertModel cannot be packed: {error.__name__}: no kernel for this device")


@pytest.mark.parametrize("family", [family for family, (_, packed, _) in FAMILIES.items() if packed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_token_of_a_row_is_as_it_is_padded(tmp_path, family, dtype):
    """Not the vectors alone: each hidden state of each token, also where a text holds the id of padding."""
    folder = read_model_folder(save_family(tmp_path, family))
    outline = read_outline(folder)
    transformer = load_transformer(folder.weights, outline, dtype, resolve_device("cpu"))
    assert transformer.is_packed
    texts = [*TEXTS[1:], "a [PAD] b", "a [PAD] [PAD]", "b [PAD] a", "fox", "the fox jumps over"]
    ids = [encoding.ids for encoding in outline.tokenizer.encode_batch_fast(texts)]
    tokens = Tokens(np.array([len(one) for one in ids], np.int32), np.concatenate([np.array(one) for one in ids]))
    order = np.argsort(-tokens.lengths, kind="stable")
    batch = pack(tokens, order, outline.pad_position)
    with torch.inference_mode():
        together = transformer.run(batch).float()
        transformer.model.set_attn_implementation("sdpa")
        padded = run_padded(transformer.model, batch, outline.pad_id).float()
    assert together.shape == padded.shape == (len(tokens.ids), outline.width)
    similar = torch.nn.functional.cosine_similarity(together, padded)
    assert similar.min() >= (0.99999 if dtype == torch.float32 else 0.995)
