"""What a run puts around brokers and roles: variables, clocks that shift, a disk that fills, a file for their logs."""

import contextlib
import logging
import os
import struct
import subprocess
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TextIO

from streams import failpoints

DISK_MIB = 1_024
_ROOT = Path(__file__).parent.parent


@contextlib.contextmanager
def environment(folder: Path, launch: str) -> Generator[Path]:
    """The variables that the roles of a run inherit; gives the folder of its failpoints."""
    points = folder / "failpoints"
    points.mkdir()
    with _variables({failpoints.VARIABLE: str(points), "FAULTS_LAUNCH": launch, "PYTHONPATH": str(_ROOT)}):
        yield points


@contextlib.contextmanager
def clocks(folder: Path, whose: str) -> Generator[None]:
    """What is started within has a clock that `set_clock` shifts."""
    library = folder / "clock.so"
    if not library.exists():
        source = Path(__file__).parent / "clock.c"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    set_clock(folder, whose, 0.0)
    with _variables({"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(_clock_of(folder, whose))}):
        yield


def set_clock(folder: Path, whose: str, seconds: float) -> None:
    """Shift the clock of those that were started within `clocks`; in place, as they have mapped the file."""
    path = _clock_of(folder, whose)
    path.touch()
    with path.open("r+b") as file:
        file.write(struct.pack("d", seconds))


def _clock_of(folder: Path, whose: str) -> Path:
    return folder / f"clock-of-{whose}"


@contextlib.contextmanager
def _variables(ours: Mapping[str, str]) -> Generator[None]:
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def disk(folder: Path, mib: int = DISK_MIB) -> Generator[None]:
    """A folder that is to be made has a disk of its own, a tmpfs, until the block ends, whoever uses it then.

    Raises:
        CalledProcessError: this machine does not let its user mount one.
    """
    folder.mkdir(parents=True)
    size = f"size={mib}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=True, capture_output=True, text=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def logged_to(file: TextIO) -> Generator[None]:
    """Everything that roles and brokers say goes to a file."""
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s harness %(levelname)s %(name)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with contextlib.redirect_stderr(file):
            yield
    finally:
        root.removeHandler(handler)
