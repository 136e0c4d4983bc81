"""The end of a process that cannot end in order."""

import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

_WORDS_S = 1.0
"""For the last words: a pipe that nobody reads would hold them for ever."""


def end_process(why: str) -> NoReturn:
    """End this process with exit code 1, whatever its threads do; `why` goes to stderr, if that takes it."""
    with suppress(RuntimeError):  # no more threads can be had
        threading.Timer(_WORDS_S, os._exit, (1,)).start()
    with suppress(OSError, ValueError):  # a full disk, a closed pipe
        sys.stderr.write(f"manyray: {why}\n")
        sys.stderr.flush()
    os._exit(1)
