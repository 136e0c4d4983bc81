"""What encoders of one process share of a device: a queue of batches, so that urgent ones go before those of others."""

from dataclasses import dataclass, field
from functools import cache
from threading import Lock

from encoders.urgency import UrgentFirst


@dataclass(frozen=True, slots=True)
class DeviceQueue:
    """The threads that compute batches on a device. launching: on a GPU, held by who launches one: its activations
    then take the memory of the one before.
    """

    threads: UrgentFirst
    launching: Lock = field(default_factory=Lock)


@cache
def queue_of(device: str, threads: int, *, is_nice: bool) -> DeviceQueue:
    """That of a device, which has so many threads; the same one for every encoder, and there until the process ends."""
    return DeviceQueue(UrgentFirst(threads, f"compute-{device}", is_nice=is_nice))
