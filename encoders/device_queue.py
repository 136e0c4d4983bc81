"""What encoders of one process share of a device."""

from dataclasses import dataclass, field
from functools import cache
from threading import Lock

import torch

from encoders.urgency import UrgentFirst

_GPU_BATCHES = 2
"""One is computed, and the next waits in the GPU's queue."""
_GPU_PATIENCE_S = 1.0
"""A batch takes a GPU a moment: one a second of those that are not urgent delays nobody, and what ends is done soon."""


@dataclass(frozen=True, slots=True)
class DeviceQueue:
    """The threads that compute batches on a device. launching: on a GPU, held by who launches one: its activations
    then take the memory of the one before.
    """

    threads: UrgentFirst
    launching: Lock = field(default_factory=Lock)


_gpus: dict[str, DeviceQueue] = {}
_finding = Lock()


def queue_of(device: torch.device) -> DeviceQueue:
    """Of a GPU the same one for all encoders, so that urgent batches of one go before those of another that are not; of
    a CPU one for each, as the operating system shares cores by how urgent threads are.
    """
    if device.type == "cpu":
        return DeviceQueue(UrgentFirst(cores(), "compute", is_nice=True))
    with _finding:
        found = _gpus.get(str(device))
        if found is None:
            # A GPU's threads compute little, and what they are late with it waits for.
            threads = UrgentFirst(_GPU_BATCHES, f"compute-{device}", is_nice=False, patience_s=_GPU_PATIENCE_S)
            found = _gpus[str(device)] = DeviceQueue(threads)
        return found


@cache
def cores() -> int:
    """The cores that torch computes on, as it had it when this was first asked: a thread may have fewer for itself."""
    return torch.get_num_threads()
