"""Files that are whole or not there, also when the power goes."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Generator[BinaryIO]:
    """A file to be written, which has its name once the block is done with it: until then what was there stays.

    Beside it lies `_<name>.new` meanwhile, which readers of a folder of Parquet pass over. A block that raises leaves
    nothing of it.

    Raises:
        OSError: it cannot be written.
    """
    beside = path.with_name(f"_{path.name}.new")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else the new name may be gone after a power cut, and what was written after it not
    finally:
        os.close(folder)
