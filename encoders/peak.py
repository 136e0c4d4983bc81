"""The most that a device's matrix products reach, found by trying: of that, an encoder's speed is a share."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

# The shared clock lives in a package above this one; these readings are a metric and decide nothing else.
from time import perf_counter, thread_time  # noqa: TID251

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from encoders.linear import LaidOutLinear

BUDGET_S = 0.5
"""For `quick_peak` in all."""
TRIAL_S = 0.1
"""For each matrix of it."""
SIDES = {"cpu": (384, 512, 768), "cuda": (2_048, 4_096, 8_192)}
"""Of its square matrices, small ones first: they tell whether a slow device has the time for the next."""
_GPU_CALLS = 10
"""Between two waits for a GPU: its host is then ahead of it, as it is of the encoder's batches."""
_BEGIN_TIMEOUT_S = 60.0
"""For the first product of each stream; then this is no machine to measure."""


def quick_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second: the best of a few square matrices, in `BUDGET_S`; on a CPU a product a core, as the encoder does.

    A CPU's seconds are those in which it computed, so that who else starts on this machine takes nothing from them.
    A device that is slow is tried with fewer, but with one at least.
    RuntimeError: it fails, or has no memory left.
    """
    is_cpu = device.type == "cpu"
    streams = torch.get_num_threads() if is_cpu else 1
    first = streams if is_cpu else _GPU_CALLS
    begun, best = perf_counter(), 0.0
    for side in SIDES[device.type]:
        flops = 2.0 * side**3
        if best:
            first_s = first * flops / best
            if perf_counter() - begun + first_s + max(first_s, TRIAL_S) > BUDGET_S:
                break
        *_, call = ways(device, dtype, side, side, side).values()
        best = max(best, flops * products_per_s(call, streams, TRIAL_S, thread_time if is_cpu else perf_counter))
    return best


def ways(device: torch.device, dtype: torch.dtype, rows: int, width: int, out: int) -> dict[str, Callable[[], int]]:
    """Calls that compute a linear layer, once or more often, and say how often; the encoder's own way is the last."""
    layer = nn.Linear(width, out, device=device, dtype=dtype).requires_grad_(False)
    activations = torch.randn(rows, width, device=device).to(dtype)

    def on_gpu() -> int:
        for _ in range(_GPU_CALLS):
            linear(activations, layer.weight, layer.bias)
        torch.cuda.synchronize(device)
        return _GPU_CALLS

    def on_cpu(compute: Callable[[Tensor], Tensor]) -> int:
        compute(activations)
        return 1

    if device.type != "cpu":
        return {"torch": on_gpu}
    found: dict[str, Callable[[], int]] = {"torch": partial(on_cpu, layer)}
    if torch.backends.mkldnn.is_available():
        found["oneDNN's layout"] = partial(on_cpu, LaidOutLinear(layer, gelu=False, rows=rows))
    return found


def products_per_s(
    call: Callable[[], int], streams: int, trial_s: float, clock: Callable[[], float] = perf_counter
) -> float:
    """What so many threads, which share the cores, call together in a second of the clock, after a first call of each.

    RuntimeError: as the call, or one of them did not begin in time.
    """
    cores = torch.get_num_threads()
    begin = threading.Barrier(streams, timeout=_BEGIN_TIMEOUT_S)

    def stream(_: int) -> float:
        torch.set_num_threads(max(1, cores // streams))  # of this thread, and of those that are begun after it
        with torch.inference_mode():
            try:
                call()
            except BaseException:
                begin.abort()  # nobody is to wait for this one
                raise
            begin.wait()
            count, begun, start = 0, perf_counter(), clock()
            while perf_counter() - begun < trial_s or not count:
                count += call()
        return count / (clock() - start)

    try:
        with ThreadPoolExecutor(streams) as pool:
            return sum(pool.map(stream, range(streams)))
    finally:
        torch.set_num_threads(cores)
