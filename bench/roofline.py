"""What a device is and can do, and what a model asks of it: the peak of its matrix products, FLOPs, its busy time."""

import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter  # noqa: TID251 - the shared clock lives beside Kafka, which is not here
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModel

from encoders.batching import Lengths
from encoders.linear import LaidOutLinear

TRIAL_S = 0.2
"""For each shape and way to compute it."""
SQUARES = {"cpu": (1_024, 2_048), "cuda": (4_096, 8_192)}
"""Sides of square matrices, which a device is fastest at."""
_GPU_CALLS = 10
"""Between two waits for a GPU: its host is then ahead of it, as it is of the encoder's batches."""
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "sentence-transformers", "onnxruntime", "openvino")
_BEGIN_TIMEOUT_S = 60.0
"""For the first product of each stream; then this is no machine to measure."""
_SAMPLE_S = 0.05


def describe(device: torch.device) -> str:
    """One line: the machine, and versions of what computes."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{torch.get_num_threads()} cores of {names[0] if names else platform.machine()}, {gib:.0f} GiB"
    if device.type != "cpu":
        gpu = torch.cuda.get_device_properties(device)
        machine = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, with {machine}"
    found: list[str] = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return f"{machine}, Python {platform.python_version()}, {', '.join(found)}"


@dataclass(frozen=True, slots=True)
class Peak:
    """The most FLOP a second that matrix products reached, and how."""

    flops_per_s: float
    how: str


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What decides a transformer's FLOPs. linear_parameters: weights of its linear layers, without the pooler."""

    linear_parameters: int
    layers: int
    hidden: int
    intermediate: int

    def flops(self, lengths: Lengths) -> float:
        """Of texts of these lengths, in tokens: 2 a weight and token, and 4 x layers x hidden x tokens^2 of attention.

        Attention is counted whole: less is computed by a causal one, or in a sliding window.
        """
        tokens = lengths.astype(np.float64)
        return float(2 * self.linear_parameters * tokens.sum() + 4 * self.layers * self.hidden * (tokens**2).sum())


def model_cost(weights: Path) -> ModelCost:
    """Read the configuration of a model's folder; no weights are loaded."""
    config: Any = AutoConfig.from_pretrained(weights, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: nn.Module = AutoModel.from_config(config, trust_remote_code=False)
    linears = (
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("pooler")
    )
    intermediate = getattr(config, "intermediate_size", 4 * config.hidden_size)
    return ModelCost(sum(linears), config.num_hidden_layers, config.hidden_size, intermediate)


def gemm_peak(device: torch.device, dtype: torch.dtype, cost: ModelCost, batch_tokens: int) -> Peak:
    """The best of square matrices and of the model's own, by each way that the device has to compute them.

    On a CPU: all cores at one product, and a product a core; as torch does, and in oneDNN's layout.
    """
    hidden, inner = cost.hidden, cost.intermediate
    shapes = [(side, side, side) for side in SQUARES[device.type]]
    shapes += [(batch_tokens, *shape) for shape in ((hidden, hidden), (hidden, 3 * hidden), (hidden, inner))]
    shapes += [(batch_tokens, inner, hidden)]
    cores = torch.get_num_threads()
    peaks: list[Peak] = []
    for rows, width, out in shapes:
        flops = 2.0 * rows * width * out
        for name, call in _ways(device, dtype, rows, width, out).items():
            for streams in {1, cores} if device.type == "cpu" else {1}:
                how = f"{rows} x {width} x {out}, {name}, " + ("one at a time" if streams == 1 else "one a core")
                peaks.append(Peak(flops * _rate(call, streams, max(1, cores // streams)), how))
    torch.set_num_threads(cores)
    return max(peaks, key=lambda peak: peak.flops_per_s)


def _ways(device: torch.device, dtype: torch.dtype, rows: int, width: int, out: int) -> dict[str, Callable[[], int]]:
    """Calls that compute a linear layer, once or more often, and say how often."""
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
    ways: dict[str, Callable[[], int]] = {"torch": partial(on_cpu, layer)}
    if torch.backends.mkldnn.is_available():
        ways["oneDNN's layout"] = partial(on_cpu, LaidOutLinear(layer, gelu=False, rows=rows))
    return ways


def _rate(call: Callable[[], int], streams: int, threads: int) -> float:
    """Products a second of all streams together, each of so many threads."""
    begin = threading.Barrier(streams, timeout=_BEGIN_TIMEOUT_S)

    def stream(_: int) -> float:
        torch.set_num_threads(threads)  # of this thread
        with torch.inference_mode():
            call()
            begin.wait()
            count, start = 0, perf_counter()
            while (took_s := perf_counter() - start) < TRIAL_S or not count:
                count += call()
        return count / took_s

    with ThreadPoolExecutor(streams) as pool:
        return sum(pool.map(stream, range(streams)))


class GpuMeter:
    """Samples how busy a GPU is while it stands, and reads the energy it took; needs pynvml, and says so without.

    The busy share is NVML's: of time in which any kernel ran, however little of the GPU it filled.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._nvml: Any = import_module("pynvml") if find_spec("pynvml") else None
        self._shares: list[float] = []
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._joules = 0.0

    def __enter__(self) -> Self:
        if self._nvml:
            self._nvml.nvmlInit()
            self._joules = self._energy()
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._nvml:
            self._stop.set()
            self._sampler.join()
            self._joules = self._energy() - self._joules

    def say(self, texts: int) -> str:
        """One line for so many texts computed meanwhile."""
        if not self._nvml:
            return "gpu: busy share and energy not measured: pip install nvidia-ml-py"
        busy = f"busy {np.mean(self._shares):.0%} of the time" if self._shares else "busy share not measured"
        energy = f"{self._joules / texts * 1_000:.1f} J per 1,000 texts" if self._joules > 0 else "energy not measured"
        return f"gpu: {busy} ({len(self._shares)} samples), {energy}"

    def _sample(self) -> None:
        try:
            while not self._stop.wait(_SAMPLE_S):
                self._shares.append(torch.cuda.utilization(self._device) / 100)
        except self._nvml.NVMLError:  # a part of a GPU has no such figure
            return

    def _energy(self) -> float:
        """Joules since the driver was loaded; 0 where this GPU does not count them."""
        uuid = torch.cuda.get_device_properties(self._device).uuid
        try:
            handle = self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1_000
        except self._nvml.NVMLError:
            return 0.0
