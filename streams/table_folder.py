"""The folder of a table on disk: its format, its generations, and where a damaged one goes."""

import logging
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from streams import clock
from streams.settings import Settings
from streams.topics import Topics

_log = logging.getLogger("manyray.table")

FORMAT = "2"
"""Of what the table writes: raise it when that changes, and tables of before are refilled."""
_FORMAT_FILE = "FORMAT"
_GENERATIONS = 2
_VERSION = re.compile("[0-9a-f]{12}")


def folder_of(settings: Settings, topics: Topics, partition: int) -> Path:
    """Where the table of a partition lies: each version of a ray has its own."""
    return settings.data_dir / "tables" / f"{topics.ray}-{topics.version}" / str(partition)


def remove_others(settings: Settings, ray: str, versions: Collection[str]) -> None:
    """Remove the tables of versions of a ray that are served no longer, of this machine; what cannot be, stays."""
    for folder in (settings.data_dir / "tables").glob(f"{ray}-*"):
        version = folder.name.removeprefix(f"{ray}-")
        if _VERSION.fullmatch(version) and version not in versions:  # a longer ray's name may begin so
            _log.info("the tables of version %s are removed: it is served no longer", version)
            shutil.rmtree(folder, ignore_errors=True)


def spare_of(folder: Path) -> Path:
    """Where it lies instead, while another process holds that."""
    return folder.with_name(f"{folder.name}.spare")


def claim(folder: Path) -> list[int]:
    """Make `folder` a table's and return the numbers of its generations, oldest first; none in a new one.

    What is in it is removed if it is of another format, and so are generations that a rotation left behind.

    Raises:
        OSError: the folder cannot be used.
    """
    file = folder / _FORMAT_FILE
    found = file.read_text(errors="replace") if file.exists() else ""
    if found != FORMAT:
        if folder.exists() and any(folder.iterdir()):
            _log.warning("table %s is of format %r, not %r: removed, to be refilled", folder, found, FORMAT)
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(FORMAT)
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    for number in numbers[:-_GENERATIONS]:
        shutil.rmtree(folder / str(number))
    return numbers[-_GENERATIONS:]


def set_aside(folder: Path) -> Path:
    """Rename a damaged table's folder, for whoever wants to know why; one that was set aside before is removed.

    Raises:
        OSError: it cannot be renamed.
    """
    for older in folder.parent.glob(f"{folder.name}.corrupt-*"):
        shutil.rmtree(older)
    aside = folder.with_name(f"{folder.name}.corrupt-{clock.utc_stamp()}")
    if folder.exists():  # not if somebody deleted it under us
        folder.rename(aside)
    return aside
