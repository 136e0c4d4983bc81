"""Laws of encoders that share a process: texts are tokenised once if tokenizers agree, and a device has one queue."""

import gc
from pathlib import Path

import numpy as np
import pytest

from encoders import load_encoder
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


def test_a_device_has_one_queue(folder: Path) -> None:
    """So that the urgent batches of one encoder go before those of another that are not."""
    assert load(folder).queue is load(folder, pooling="max").queue
