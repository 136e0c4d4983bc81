"""What a device is and can do: its machine, the peak of its matrix products, its busy time and energy."""

import os
import platform
import threading
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from encoders.cost import ModelCost
from encoders.nvml import Nvml
from encoders.peak import products_per_s, ways

TRIAL_S = 0.2
"""For each shape and way to compute it."""
SQUARES = {"cpu": (1_024, 2_048), "cuda": (4_096, 8_192)}
"""Sides of square matrices, which a device is fastest at."""
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "sentence-transformers", "onnxruntime", "openvino")
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


def gemm_peak(device: torch.device, dtype: torch.dtype, cost: ModelCost, batch_tokens: int) -> Peak:
    """The best of square matrices and of the model's own, by each way that the device has to compute them.

    On a CPU: all cores at one product, and a product a core; as torch does, and in oneDNN's layout.
    """
    hidden, inner = cost.hidden, cost.intermediate
    shapes = [(side, side, side) for side in SQUARES[device.type]]
    shapes += [(batch_tokens, *shape) for shape in ((hidden, hidden), (hidden, 3 * hidden), (hidden, inner))]
    shapes += [(batch_tokens, inner, hidden)]
    peaks: list[Peak] = []
    for rows, width, out in shapes:
        flops = 2.0 * rows * width * out
        for name, call in ways(device, dtype, rows, width, out).items():
            for streams in {1, torch.get_num_threads()} if device.type == "cpu" else {1}:
                how = f"{rows} x {width} x {out}, {name}, " + ("one at a time" if streams == 1 else "one a core")
                peaks.append(Peak(flops * products_per_s(call, streams, TRIAL_S), how))
    return max(peaks, key=lambda peak: peak.flops_per_s)


class GpuMeter:
    """Samples how busy a GPU is while it stands, and reads the energy it took, as `encoders.nvml` tells them."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = Nvml(str(torch.cuda.get_device_properties(device).uuid))
        self._shares: list[float] = []
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._joules: float | None = None

    def __enter__(self) -> Self:
        self._joules = self._gpu.joules()
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._sampler.join()
        if self._joules is not None:
            self._joules = (self._gpu.joules() or self._joules) - self._joules

    def say(self, texts: int) -> str:
        """One line for so many texts computed meanwhile."""
        if find_spec("pynvml") is None:
            return "gpu: busy share and energy not measured: pip install nvidia-ml-py"
        busy = f"busy {np.mean(self._shares):.0%} of the time" if self._shares else "busy share not measured"
        energy = f"{self._joules / texts * 1_000:.1f} J per 1,000 texts" if self._joules else "energy not measured"
        return f"gpu: {busy} ({len(self._shares)} samples), {energy}"

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_S) and (busy := self._gpu.busy()) is not None:
            self._shares.append(busy)
