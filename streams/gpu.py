"""What a GPU holds and takes, as metrics that are read when Prometheus asks. Absent where nobody knows: 0 would lie."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from encoders.nvml import Nvml

if TYPE_CHECKING:
    import torch


class GpuCollector(Collector):
    """The metrics of one GPU, told apart by its UUID, as several processes may tell of the same one."""

    def __init__(self, uuid: str, memory_bytes: Callable[[], int], memory_total_bytes: int) -> None:
        """`memory_bytes` says what this process holds now."""
        self._uuid = uuid
        self._nvml = Nvml(uuid)
        self._memory_bytes, self._memory_total_bytes = memory_bytes, memory_total_bytes

    @staticmethod
    def describe() -> list[GaugeMetricFamily | CounterMetricFamily]:
        """All of them, without values; `docs/reference.md` has them too."""

        def gauge(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"manyray_gpu_{name}", text, labels=["gpu"])

        return [
            gauge(
                "memory_bytes", "bytes of the GPU's memory that this process holds for tensors, in use or to be reused"
            ),
            gauge("memory_total_bytes", "bytes of the GPU's memory"),
            gauge("power_watts", "power that the whole GPU takes, whoever uses it"),
            CounterMetricFamily(
                "manyray_gpu_energy_joules",
                "energy that the whole GPU took since its driver was loaded, whoever used it",
                labels=["gpu"],
            ),
            gauge(
                "busy_ratio", "share of the time in which any kernel ran on the GPU, however little of it that filled"
            ),
        ]

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Those that are known now."""
        nvml = self._nvml
        values = (self._memory_bytes(), self._memory_total_bytes, nvml.watts(), nvml.joules(), nvml.busy())
        for family, value in zip(self.describe(), values, strict=True):
            if value is not None:
                family.add_metric([self._uuid], value)
                yield family


def register_gpu(registry: CollectorRegistry, device: "torch.device | None") -> None:
    """Add a GPU's metrics; a CPU has none."""
    if device is None or device.type != "cuda":
        return
    import torch  # noqa: PLC0415 - its encoder has imported it

    gpu = torch.cuda.get_device_properties(device)
    with suppress(ValueError):  # another version of this process did, on the same GPU
        registry.register(GpuCollector(str(gpu.uuid), lambda: torch.cuda.memory_reserved(device), gpu.total_memory))
