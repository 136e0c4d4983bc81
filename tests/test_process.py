"""What dedup asks of the system, in a process of its own, as it cannot be taken back."""

import os
import resource
import subprocess
import sys

import pytest

from streams.process import ARENAS_MAX

ALLOCATE = """
import ctypes, sys, threading
from streams.process import LARGE_BYTES, give_memory_back

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.fopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
give_memory_back()
libc.free(libc.malloc(16 * LARGE_BYTES))  # after which glibc would keep blocks up to so large in arenas
together = threading.Barrier(4 * 4)

def allocate():
    together.wait()
    libc.malloc(100_000)
    libc.malloc(LARGE_BYTES)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(together.parties)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
file = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, file)
libc.fclose(file)
"""


def heap(**environment: str) -> tuple[int, int]:
    """Arenas, and blocks apart from them, of a process whose 16 threads each took a small block and a large one."""
    told = subprocess.run(
        [sys.executable, "-c", ALLOCATE],
        env={name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    mapped = told.rpartition('<total type="mmap" count="')[2].partition('"')[0]
    return told.count("<heap nr="), int(mapped)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_threads_share_few_arenas_and_large_blocks_stand_apart() -> None:
    """Holes do not grow with threads, and what is large goes back to the system when it is freed."""
    arenas, mapped = heap()
    assert arenas <= ARENAS_MAX
    assert mapped >= 16


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_users_tell_the_allocator_holds() -> None:
    """One who sets a variable of glibc's has a reason."""
    arenas, mapped = heap(MALLOC_ARENA_MAX="9")
    assert arenas == 9
    assert mapped < 16


def test_a_process_may_open_as_many_files_as_its_user() -> None:
    """A table has hundreds open."""
    program = "import resource; from streams.process import allow_open_files; allow_open_files()\n"
    program += "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))

    told = subprocess.run([sys.executable, "-c", program], preexec_fn=lower, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["128", "128"]
