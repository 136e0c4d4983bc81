"""Laws of rescue: a text that cannot be embedded is told apart, and its neighbours keep their vectors."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders import Engine, load_encoder, warm_up
from encoders.batching import plan_batches
from encoders.hashing import HashEncoder
from encoders.rescue import NOT_FINITE, OUT_OF_MEMORY, encode_each
from schemas.errors import Fatal


class PoorEncoder(HashEncoder):
    """The hash encoder on a device for `room` texts at once, and for no text with `!` in it; `?` gives infinity.

    With `~` in a text that comes with others its vector is not finite either.
    """

    def __init__(self, room=10**9):
        plain = load_encoder("hash:16")
        super().__init__(plain.spec, plain.dims)
        self.room = room

    def encode(self, tokens, batch_tokens, on_batch=lambda: None, is_urgent=True):
        """As the hash encoder, where it fits."""
        texts = [tokens.take([row]).ids.tobytes() for row in range(len(tokens.lengths))]
        if len(texts) > self.room or any(b"!" in text for text in texts):
            raise MemoryError
        plain = super().encode(tokens, batch_tokens, on_batch, is_urgent)
        encoded = replace(plain, flops=float(np.square(tokens.lengths).sum()))
        for row, text in enumerate(texts):
            if b"?" in text or (b"~" in text and len(texts) > 1):
                encoded.vectors[row, 3] = np.inf
        return encoded


texts = st.lists(st.text("ab!?~", max_size=9), max_size=30)


@given(texts, st.integers(1, 30), st.integers(1, 40))
def test_exactly_the_bad_texts_fail_and_the_others_have_their_vectors(some, room, batch_tokens):
    """Whatever the texts, the room and the batches: reasons are those of the texts, rows those of the plain encoder,
    and what it cost is counted once for each text that fits.
    """
    encoder = PoorEncoder(room)
    plain = load_encoder("hash:16")
    encoded = encode_each(encoder, encoder.tokenise(some), batch_tokens)
    expected = {row: OUT_OF_MEMORY if "!" in text else NOT_FINITE for row, text in enumerate(some) if {*"!?"} & {*text}}
    assert encoded.failed == expected
    good = [row for row in range(len(some)) if row not in expected]
    assert np.array_equal(encoded.vectors[good], plain.encode(plain.tokenise(some), 1).vectors[good])
    fitting = [len(text.encode()) for text in some if "!" not in text]
    assert (encoded.tokens, encoded.flops) == (sum(fitting), sum(length**2 for length in fitting))
    batches = [[some[row] for row in batch] for batch in plan_batches(encoder.tokenise(some).lengths, batch_tokens)]
    wanting = len(some) > room or any("!" in text for text in some)
    halved = any(len(batch) > 1 and (len(batch) > room or any("!" in text for text in batch)) for batch in batches)
    assert (encoded.splits > 0) == (wanting and halved)


def test_what_fits_is_computed_once():
    """Without want of memory nothing is split, and a window is one call of the encoder."""
    calls = []
    encoder = PoorEncoder()
    encoded = encode_each(encoder, encoder.tokenise(["a", "b"] * 50), 16, lambda: calls.append(1))
    assert (encoded.splits, encoded.failed, len(calls)) == (0, {}, 1)


def test_a_split_costs_little_more_than_the_halves_on_the_way_to_the_text():
    """One bad text among 64 of a batch is found with 6 splits, not by trying each."""
    encoder = PoorEncoder()
    encoded = encode_each(encoder, encoder.tokenise(["x"] * 40 + ["!"] + ["x"] * 23), 10**6)
    assert encoded.failed == {40: OUT_OF_MEMORY}
    assert encoded.splits == 6
    assert encoded.tokens == 63


def test_another_error_is_none_of_ours():
    """Only want of memory is split for: what else an encoder raises comes out as it is."""

    class Failing(PoorEncoder):
        def encode(self, tokens, batch_tokens, on_batch=lambda: None, is_urgent=True):
            raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError, match="device-side assert"):
        encode_each(Failing(), Failing().tokenise(["a", "b"]), 16)


def test_the_budget_that_fits_is_found_before_the_first_post():
    """Warming up halves it until a batch fits: 4,096 tokens are 34 texts of a warm-up, 1,024 are 10."""
    assert warm_up(PoorEncoder(), 4096) == 4096
    assert warm_up(PoorEncoder(room=10), 4096) == 1024


def test_a_device_that_is_too_small_is_told_before_the_first_post():
    """Where not even a few tokens fit, no post is to blame."""
    with pytest.raises(Fatal, match="has not the memory for this model"):
        warm_up(PoorEncoder(room=0), 4096)


def test_a_budget_that_no_longer_fits_is_halved_for_good():
    """After a window of which a batch was halved the next have half the tokens a batch; a long text alone is none."""
    with Engine(PoorEncoder(room=4), 1_000) as engine:
        assert engine.submit(["x"] * 9).result(20).splits == 2
        assert engine.batch_tokens == 500
        assert engine.submit(["x" * 600, "!" * 600]).result(20).failed == {1: OUT_OF_MEMORY}
        assert engine.batch_tokens == 500


def test_a_broken_model_is_told_before_the_first_post():
    """Its vectors of plain words are not finite: the posts are not to blame."""

    class Broken(PoorEncoder):
        def encode(self, tokens, batch_tokens, on_batch=lambda: None, is_urgent=True):
            encoded = super().encode(tokens, batch_tokens, on_batch, is_urgent)
            encoded.vectors[-1] = np.nan
            return encoded

    with pytest.raises(Fatal, match="check its weights"):
        warm_up(Broken())
