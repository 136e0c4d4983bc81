"""Laws of a GPU's metrics: in the units of their names, read anew each time, and absent where nobody knows them.

There is no GPU here: a stand-in for NVIDIA's module answers as that does.
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from streams.gpu import GpuCollector, register_gpu

UUID = "01234567-89ab-cdef-0123-456789abcdef"
MEMORY = {"manyray_gpu_memory_bytes": 3e9, "manyray_gpu_memory_total_bytes": 8e10}
TOLD = {
    "nvmlDeviceGetPowerUsage": ("manyray_gpu_power_watts", 310.5),
    "nvmlDeviceGetTotalEnergyConsumption": ("manyray_gpu_energy_joules_total", 70_000.25),
    "nvmlDeviceGetUtilizationRates": ("manyray_gpu_busy_ratio", 0.93),
}
EVERYTHING = MEMORY | dict(TOLD.values())


class NVMLError(Exception):
    """As the module's own."""


def stand_in(*broken, joules=(70_000.25,), percent=93):
    """`pynvml` where there is one GPU; functions of `broken` fail, and each reading of the energy is the next."""
    energy = iter(joules)

    def fail(*_):
        raise NVMLError

    def of_the_gpu(told):
        def answer(handle):
            assert handle == 7
            return told()

        return answer

    functions = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: 7 if uuid == f"GPU-{UUID}" else fail(),
        "nvmlDeviceGetPowerUsage": of_the_gpu(lambda: 310_500),
        "nvmlDeviceGetTotalEnergyConsumption": of_the_gpu(lambda: round(next(energy) * 1_000)),
        "nvmlDeviceGetUtilizationRates": of_the_gpu(lambda: SimpleNamespace(gpu=percent, memory=40)),
    }
    return SimpleNamespace(NVMLError=NVMLError, **functions | dict.fromkeys(broken, fail))


def collector(monkeypatch, module, uuid=UUID):
    """A GPU's metrics, where `module` is what `import pynvml` gives; None: it fails."""
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return GpuCollector(uuid, lambda: 3_000_000_000, 80_000_000_000)


def scrape(one, uuid=UUID):
    """What Prometheus reads, by name."""
    registry = CollectorRegistry()
    registry.register(one)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    samples = [sample for family in families for sample in family.samples]
    assert all(sample.labels == {"gpu": uuid} for sample in samples)
    return {sample.name: sample.value for sample in samples}


def test_each_figure_is_in_the_unit_of_its_name(monkeypatch):
    """NVML tells milliwatts, millijoules and percent."""
    assert scrape(collector(monkeypatch, stand_in())) == EVERYTHING


def test_figures_are_read_when_they_are_asked_for(monkeypatch):
    """The second scrape has the energy of its own moment."""
    one = collector(monkeypatch, stand_in(joules=(5, 17)))
    assert [scrape(one)["manyray_gpu_energy_joules_total"] for _ in range(2)] == [5, 17]


def test_an_idle_gpu_is_no_unknown_one(monkeypatch):
    """Busy for 0 % of the time is a figure."""
    assert scrape(collector(monkeypatch, stand_in(percent=0))) == EVERYTHING | {"manyray_gpu_busy_ratio": 0}


@pytest.mark.parametrize("function", TOLD)
def test_what_a_gpu_does_not_tell_is_left_out_by_itself(monkeypatch, function):
    """Older GPUs and parts of one (MIG) lack some figures, and have the others."""
    name, _ = TOLD[function]
    assert scrape(collector(monkeypatch, stand_in(function))) == {
        other: value for other, value in EVERYTHING.items() if other != name
    }


@pytest.mark.parametrize("module", [None, stand_in("nvmlInit")], ids=["no module", "no driver"])
def test_without_nvml_there_are_no_zeros(monkeypatch, module):
    """What only NVML tells is absent; memory is torch's to tell."""
    assert scrape(collector(monkeypatch, module)) == MEMORY


def test_a_gpu_that_nvml_does_not_know_is_none_of_its(monkeypatch):
    """Another GPU's watts are never shown for this one's."""
    assert scrape(collector(monkeypatch, stand_in(), "another"), uuid="another") == MEMORY


@pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=str)
def test_a_cpu_has_none_of_them(device):
    """Neither the hash encoder nor a model on the CPU has a GPU's series."""
    registry = CollectorRegistry()
    register_gpu(registry, device)
    assert list(registry.collect()) == []
