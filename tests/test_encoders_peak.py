"""Laws of a device's peak: it is found where there is one, in bounds, and where it cannot be found nothing ends."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import save_bert

from encoders import load_encoder, measure_peak, peak
from encoders.hashing import HashEncoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cpu_has_a_peak(dtype):
    """In either type; and torch has as many threads as before, also for who begins to compute only then."""
    before = torch.get_num_threads()
    assert 1e6 < peak.quick_peak(torch.device("cpu"), dtype) < 1e18
    with ThreadPoolExecutor(1) as pool:
        assert [torch.get_num_threads(), pool.submit(torch.get_num_threads).result()] == [before] * 2


def test_an_encoder_has_the_peak_of_its_device(tmp_path):
    """A model that of the CPU it is on; the hash encoder none, as nothing is multiplied, and no device."""
    assert measure_peak(load_encoder(str(save_bert(tmp_path)), device="cpu")) > 1e6
    plain = load_encoder("hash:16")
    assert (measure_peak(plain), plain.device) == (0, None)


def test_no_matrix_is_tried_for_which_there_is_no_time(monkeypatch):
    """One that would take longer than is left is not even made: this one would be of 4 TB."""
    monkeypatch.setattr(peak, "SIDES", {"cpu": (64, 1_000_000)})
    assert peak.quick_peak(torch.device("cpu"), torch.float32) > 0


@pytest.mark.timeout(30)
def test_nobody_waits_for_a_product_that_failed(monkeypatch):
    """Where one thread's first call fails, the others, which would begin with it, end too."""
    monkeypatch.setattr(peak, "_BEGIN_TIMEOUT_S", 10_000)
    calls = []

    def fail_once():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return 1

    with pytest.raises(RuntimeError):
        peak.products_per_s(fail_once, 3, 0.001)


def test_a_peak_that_cannot_be_measured_ends_nothing():
    """The figure is then not known, which is 0."""

    class Failing(HashEncoder):
        def peak_flops_per_s(self):
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert measure_peak(Failing(load_encoder("hash:16").spec, 16)) == 0
