"""Laws of encoders that share a process: texts are tokenised once if tokenizers agree, and a GPU has one queue."""

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders import load_encoder
from encoders.device_queue import queue_of
from encoders.text import TextEncoder
from encoders.tokenising import REMEMBERED_BYTES_MAX
from tests.tiny_models import save_bert

TEXTS = [f"a text of number {number}, " + "and more " * (number % 7) for number in range(200)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model."""
    save_bert(tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path, **choices: object) -> TextEncoder:
    """An encoder of a folder, on the CPU."""
    found = load_encoder(str(folder), device="cpu", **choices)
    assert isinstance(found, TextEncoder)
    return found


def test_texts_are_tokenised_once_where_tokenizers_agree(folder: Path) -> None:
    """Whoever of the two has them first, and however they are mixed: each has the tokens that it has alone."""
    alone = load(folder).tokenise(TEXTS)
    gc.collect()
    one, other = load(folder), load(folder, pooling="max")
    assert one.tokeniser is other.tokeniser
    before = one.tokeniser.count
    for encoder, texts in ((one, TEXTS[:150]), (other, TEXTS), (one, TEXTS)):
        tokens = encoder.tokenise(texts)
        assert tokens.lengths.tolist() == alone.lengths[: len(texts)].tolist()
        assert tokens.ids.tolist() == alone.ids[: len(tokens.ids)].tolist()
    assert one.tokeniser.count - before == len(TEXTS)
    repeated = one.tokenise([TEXTS[3], TEXTS[0], TEXTS[3]])
    assert repeated.take([0]).ids.tolist() == repeated.take([2]).ids.tolist() == alone.take([3]).ids.tolist()
    assert one.tokenise([]).ids.size == 0


@pytest.mark.parametrize("choices", [{"max_tokens": 5}, {"prompt": "query: "}, {"truncation_side": "left"}])
def test_tokenizers_that_do_not_agree_share_nothing(folder: Path, choices: dict[str, object]) -> None:
    """Where texts are cut elsewhere, or begin with something else, each has its own."""
    one, other = load(folder), load(folder, **choices)
    assert one.tokeniser is not other.tokeniser
    lengths = [encoder.tokenise(TEXTS).lengths for encoder in (one, other, one)]
    assert np.array_equal(lengths[0], lengths[2])


def test_who_is_alone_remembers_nothing(folder: Path) -> None:
    """One encoder never asks twice: what it computed lately it knows. Of several, what they remember is bounded."""
    encoder = load(folder)
    gc.collect()
    before = encoder.tokeniser.count
    for _ in range(2):
        encoder.tokenise(TEXTS)
    assert encoder.tokeniser.count - before == 2 * len(TEXTS)
    another = load(folder)
    long = [f"{number} " * 20_000 for number in range(REMEMBERED_BYTES_MAX // 40_000)]
    for start in range(0, len(long), 10):
        another.tokenise(long[start : start + 10])
    count = encoder.tokeniser.count
    encoder.tokenise(long[-1:])
    assert encoder.tokeniser.count == count
    encoder.tokenise(long[:1])
    assert encoder.tokeniser.count == count + 1


def test_encoders_share_the_queue_of_a_gpu() -> None:
    """So that urgent batches of one go before those of another that are not; a CPU's cores are shared by threads."""
    assert queue_of(torch.device("cuda:0")) is queue_of(torch.device("cuda:0"))
    assert queue_of(torch.device("cuda:0")) is not queue_of(torch.device("cuda:1"))
    assert queue_of(torch.device("cpu")) is not queue_of(torch.device("cpu"))


def test_who_is_loaded_while_others_compute_has_all_cores(folder: Path) -> None:
    """A thread that computes a batch on one core leaves torch with that for the threads begun after it."""
    most = load(folder).workers
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.set_num_threads, 1).result()
        found = pool.submit(lambda: load(folder, pooling="max").workers).result()
        pool.submit(torch.set_num_threads, most).result()
    assert found == most
