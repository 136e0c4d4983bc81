"""What dedup asks of the operating system for its process: open files, and an allocator that gives memory back."""

import contextlib
import ctypes
import os
import resource

ARENAS_MAX = 4
"""Parts of glibc's heap that threads share. By default it makes eight a core."""
LARGE_BYTES = 2**20
"""Blocks so large, such as a memtable's and a fetched record set's, go back to the system when they are freed."""
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # in glibc's malloc.h


def allow_open_files() -> None:
    """Raise the limit of open files as far as this user may: a table has up to 512 open, and each partition one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS calls it unlimited, and refuses that
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def give_memory_back() -> None:
    """Keep glibc from holding memory that is free; call it before there are threads.

    RocksDB's and librdkafka's threads and ours free what others took: each thread's arena keeps it, and holes grow for
    hours (DECISIONS 34). Users' own MALLOC_ variables are left alone, and so are other C libraries.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(AttributeError, OSError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, ARENAS_MAX)
        mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
