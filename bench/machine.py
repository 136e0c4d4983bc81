"""What a figure was measured on."""

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


def describe() -> str:
    """One line: processor, cores, memory, Python and the libraries that matter."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("confluent-kafka", "faust-streaming", "rocksdict", "torch")
    )
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{os.cpu_count()} cores of {model}, {gib:.0f} GiB, {platform.system()}, Python {python}, {libraries}"


@dataclass(frozen=True)
class Speed:
    """How many a second by the clock, and microseconds of CPU for each."""

    per_s: float
    cpu_us: float
    what: str = "post"

    def __str__(self) -> str:
        return f"{self.per_s:>9,.0f} {self.what}s/s {self.cpu_us:>7.1f} us CPU a {self.what}"


def rss_mib(pid: int) -> float:
    """Resident memory of a process.

    Raises:
        FileNotFoundError: it is not there, or this is not Linux.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, all threads, user and system.

    Raises:
        FileNotFoundError: it is not there, or this is not Linux.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
