"""Tiny models with random weights, and this project's vectors of them beside sentence-transformers'."""

import json

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from encoders import load_encoder

TEXTS = [
    "",
    "a",
    "The quick brown fox",
    "jumps over the lazy dog " * 3,
    "ÉTÉ 😀 naïve",
    "[PAD] <pad> [MASK]",
    "word " * 200,
]
BACKENDS = ("onnxruntime", "openvino")
"""Those that run an exported graph."""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def save_tokenizer(folder, *, marks=True, most=40, **settings):
    """Write a WordPiece tokenizer of one token a character, with [CLS] and [SEP] if `marks`."""
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = [
        "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ é É ï",
        "the quick brown fox jumps over the lazy dog",
    ]
    trained.train_from_iterator(letters, trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL))
    if marks:
        trained.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, model_max_length=most, **names, **settings)
    tokenizer.save_pretrained(folder)


def save_bert(folder, *, seed=0, **settings):
    """Write a plain transformers folder: BERT of 2 layers of 32, 40 positions."""
    torch.manual_seed(seed)
    BertModel(BertConfig(vocab_size=150, max_position_embeddings=40, **SHAPE)).save_pretrained(folder)
    save_tokenizer(folder, **settings)
    return folder


def save_sentence_bert(folder, *, modules=("Transformer", "Pooling", "Normalize"), pooling=None, options=None, **marks):
    """Write a sentence-transformers folder around the tiny BERT, in the files of its first versions."""
    save_bert(folder, **marks)
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "3_Dense"}
    listed = [
        {"idx": index, "name": str(index), "path": paths[kind], "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(modules)
    ]
    write(folder / "modules.json", listed)
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **(pooling or {})})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False, **(options or {})})
    return folder


def write(path, value):
    """Write JSON."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def ours(folder, texts=TEXTS, **settings):
    """Encode with this project, in batches of several sizes."""
    encoder = load_encoder(str(folder), device="cpu", **settings)
    encoded = encoder.encode(encoder.tokenise(texts), 64)
    assert encoded.vectors.shape == (len(texts), encoder.dims)
    assert encoded.vectors.dtype == np.float32
    assert encoded.vectors.flags.c_contiguous
    return encoded.vectors


def theirs(folder, texts=TEXTS):
    """Encode with sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(texts, show_progress_bar=False)


def cosine(one, other):
    """The least of the vectors of texts."""
    return (one * other).sum(axis=1).min()
