"""What NVML, NVIDIA's library of management, says of a GPU: watts, joules, and how busy it is."""

from importlib import import_module
from typing import Any


class Nvml:
    """One GPU, by the UUID that torch has for it. Each figure is None where nobody tells it.

    None of them is told without nvidia-ml-py (`pynvml`), a driver, or such a GPU; some are not of an older GPU, and of
    a part of one (MIG).
    """

    def __init__(self, uuid: str) -> None:
        self._nvml: Any = None
        try:
            nvml: Any = import_module("pynvml")
        except ImportError:
            return
        try:
            nvml.nvmlInit()
            self._handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except nvml.NVMLError:
            return
        self._nvml = nvml

    def watts(self) -> float | None:
        """Of the whole GPU, now or over the last second."""
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1_000

    def joules(self) -> float | None:
        """Of the whole GPU, since its driver was loaded."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1_000

    def busy(self) -> float | None:
        """The share of the last second, or less, in which any kernel ran, however little of the GPU it filled."""
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        return None if rates is None else rates.gpu / 100

    def _ask(self, function: str) -> Any:
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, function)(self._handle)
        except self._nvml.NVMLError:
            return None
