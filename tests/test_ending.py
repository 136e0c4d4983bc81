"""The end of a process that cannot end in order: nothing keeps it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "from streams.ending import end_process; end_process({why})"
END_S_MAX = 60.0


def end(why: str, stderr: int) -> int:
    """The exit code of a process that ends so."""
    return subprocess.run(
        [sys.executable, "-c", CODE.format(why=why)], stderr=stderr, timeout=END_S_MAX, check=False
    ).returncode


def test_it_says_why() -> None:
    """In one line, with our name."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(why="'a stall'")],
        capture_output=True,
        timeout=END_S_MAX,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "manyray: a stall\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is full")
def test_it_ends_where_its_words_are_refused() -> None:
    """As on a full disk, or by a pipe whose reader is gone."""
    with Path("/dev/full").open("wb") as full:
        assert end("'a stall'", full.fileno()) == 1
    read, write = os.pipe()
    os.close(read)
    assert end("'a stall'", write) == 1
    os.close(write)


def test_it_ends_where_nobody_takes_its_words() -> None:
    """A pipe that is full and not read holds who writes for ever."""
    read, write = os.pipe()
    assert end("'a stall' * 100_000", write) == 1
    os.close(read)
    os.close(write)
