"""Laws of the engine: order, overlap, errors, close."""

import threading
from concurrent.futures import CancelledError
from itertools import count

import numpy as np
import pytest

from encoders import Engine, load_encoder
from encoders.hashing import HashEncoder


class GatedEncoder(HashEncoder):
    """The hash encoder, held at a gate before it computes, so that a test decides what overlaps."""

    def __init__(self):
        plain = load_encoder("hash:16")
        super().__init__(plain.spec, plain.dims)
        self.gate, self.computing, self.tokenised = threading.Event(), threading.Event(), threading.Semaphore(0)

    def tokenise(self, texts):
        """As the hash encoder, counted."""
        tokens = super().tokenise(texts)
        self.tokenised.release()
        return tokens

    def encode(self, tokens, batch_tokens, on_batch=lambda: None):
        """As the hash encoder, once the gate is open."""
        self.computing.set()
        assert self.gate.wait(20)
        return super().encode(tokens, batch_tokens, on_batch)


def test_results_are_those_of_the_encoder_in_order_of_submission():
    """Window k's future holds window k's vectors, and futures finish in the order of their windows."""
    encoder = load_encoder("hash:16")
    windows = [[f"{window}-{index}" for index in range(window % 7)] for window in range(60)]
    finished = []
    with Engine(encoder, 1024) as engine:
        futures = [engine.submit(texts) for texts in windows]
        for window, future in enumerate(futures):
            future.add_done_callback(lambda _, window=window: finished.append(window))
        for texts, future in zip(windows, futures, strict=True):
            expected = encoder.encode(encoder.tokenise(texts), 1024).vectors
            assert np.array_equal(future.result(20).vectors, expected)
    assert len(finished) == len(windows)


def test_the_next_window_is_tokenised_while_this_one_is_computed():
    """Tokenising of window k+1 does not wait for the vectors of window k."""
    encoder = GatedEncoder()
    with Engine(encoder, 1024) as engine:
        first, second = engine.submit(["a"]), engine.submit(["b"])
        assert encoder.tokenised.acquire(timeout=20)
        assert encoder.tokenised.acquire(timeout=20)
        assert not first.done()
        encoder.gate.set()
        assert second.result(20).vectors.shape == (1, 16)
        assert first.done()


def test_an_error_is_its_own_windows_alone():
    """A window that cannot be tokenised or computed raises in its future, and its neighbours have their vectors."""
    encoder = load_encoder("hash:16")
    with Engine(encoder, 1024) as engine:
        before, bad, after = engine.submit(["a"]), engine.submit(["\ud800"]), engine.submit(["b"])
        assert before.result(20).tokens == 1
        with pytest.raises(UnicodeEncodeError):
            bad.result(20)
        assert after.result(20).tokens == 1


def test_an_error_of_computing_reaches_its_future():
    """What `encode` raises comes out of the future."""
    encoder = GatedEncoder()
    encoder.dims = None  # which no digest can be cut to
    encoder.gate.set()
    with Engine(encoder, 1024) as engine, pytest.raises(TypeError):
        engine.submit(["a"]).result(20)


def test_close_finishes_the_window_at_work_and_cancels_the_rest():
    """No future is left hanging by a close, and nothing can be submitted after it."""
    encoder = GatedEncoder()
    engine = Engine(encoder, 1024)
    futures = [engine.submit(["a"]) for _ in range(5)]
    assert encoder.computing.wait(20)
    closing = threading.Thread(target=engine.close)
    closing.start()
    for future in futures[1:]:
        with pytest.raises(CancelledError):
            future.result(20)
    encoder.gate.set()
    assert futures[0].result(20).tokens == 1
    closing.join(20)
    engine.close()
    with pytest.raises(RuntimeError):
        engine.submit(["a"])


def test_seconds_are_the_clocks():
    """The time of computing is the difference of two readings of the clock that was passed in."""
    ticks = count()
    with Engine(load_encoder("hash:16"), 1024, clock=lambda: next(ticks) * 0.5) as engine:
        encoded = engine.submit(["a"]).result(20)
    assert encoded.encode_s == 0.5
