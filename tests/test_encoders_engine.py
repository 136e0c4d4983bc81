"""Laws of the engine: order, overlap, urgency, errors, close."""

import threading
from concurrent.futures import CancelledError
from itertools import count

import numpy as np
import pytest

from encoders import Engine, load_encoder
from encoders.engine import WINDOWS_MAX
from encoders.hashing import HashEncoder


class GatedEncoder(HashEncoder):
    """The hash encoder, held at a gate before it computes, so that a test decides what overlaps."""

    def __init__(self):
        plain = load_encoder("hash:16")
        super().__init__(plain.spec, plain.dims)
        self.gate, self.computing, self.tokenised = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)

    def tokenise(self, texts):
        """As the hash encoder, counted."""
        tokens = super().tokenise(texts)
        self.tokenised.release()
        return tokens

    def encode(self, tokens, batch_tokens, on_batch=lambda: None, is_urgent=True):
        """As the hash encoder, once the gate is open."""
        self.computing.release()
        assert self.gate.wait(20)
        return super().encode(tokens, batch_tokens, on_batch, is_urgent)


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


def test_windows_are_tokenised_and_computed_side_by_side():
    """Neither the tokens nor the vectors of window k+1 wait for the vectors of window k."""
    encoder = GatedEncoder()
    with Engine(encoder, 1024) as engine:
        first, second = engine.submit(["a"]), engine.submit(["b"])
        for reached in (encoder.tokenised, encoder.computing):
            assert reached.acquire(timeout=20)
            assert reached.acquire(timeout=20)
        assert not first.done()
        encoder.gate.set()
        assert second.result(20).vectors.shape == first.result(20).vectors.shape == (1, 16)


@pytest.mark.parametrize(("batch_tokens", "window_tokens"), [(64, 2_048), (4_000, 4_000)])
def test_windows_are_a_batch_a_worker_and_large_enough_to_sort(batch_tokens, window_tokens):
    """Small batches of texts of like length need more texts than one batch to choose from."""
    with Engine(load_encoder("hash:16"), batch_tokens) as engine:
        assert engine.window_tokens == window_tokens


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


def test_close_finishes_the_windows_at_work_and_cancels_the_rest():
    """No future is left hanging by a close, and nothing can be submitted after it."""
    encoder = GatedEncoder()
    engine = Engine(encoder, 1024)
    futures = [engine.submit(["a"]) for _ in range(WINDOWS_MAX + 4)]
    for _ in range(WINDOWS_MAX):
        assert encoder.computing.acquire(timeout=20)
    closing = threading.Thread(target=engine.close)
    closing.start()
    for future in futures[WINDOWS_MAX:]:
        with pytest.raises(CancelledError):
            future.result(20)
    encoder.gate.set()
    assert [future.result(20).tokens for future in futures[:WINDOWS_MAX]] == [1] * WINDOWS_MAX
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
