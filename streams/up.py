"""The supervisor behind `manyray up`: embedded broker and roles, each a process, kept alive and stopped in order.

The order of stopping is the flow's: nothing new comes to those that finish what they have in hand.
"""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any

from schemas.errors import Fatal
from streams import clock
from streams.broker import Broker, DataDirLock
from streams.control import check_named, check_ray, create_ray
from streams.endpoint import is_live
from streams.handover import ROLE_STOP_S, environment_for
from streams.metrics import RESTARTS_VARIABLE
from streams.restarts import RESTARTS_MAX, WINDOW_S, Restarts
from streams.settings import Settings
from streams.stall import Stalls
from streams.version import version_of

_log = logging.getLogger("manyray.up")

ROLES = ("ingest", "dedup", "encode")
STOP_WAIT_S = ROLE_STOP_S + 3.0
"""Longer than a role takes at most: who is killed could not say why it did not end."""
LIVE_TIMEOUT_S = 2.0
LIVE_EVERY_S = 2.0

_LEVELS = ("debug", "info", "warning", "error")
_LOGGED = re.compile(r"\d\d:\d\d:\d\d \S+ (debug|info|warning|error|critical) (.*)")  # manyray/logs.py writes it
_ENDED = "manyray: "  # begins the one line that a command ends with when it fails


class RoleProcess:
    """One process of a role, started again when it dies, as often as `Restarts` says; then it is given up.

    A process that dies before it was ever ready is given up at once, as what is wrong will not mend itself. One whose
    `/live` gives no answer, or a bad one, for `stall_timeout_s` is killed: most end by themselves before that.
    """

    def __init__(self, role: str, name: str, settings: Settings, changed: threading.Condition, module: str) -> None:
        """`changed` is notified of every change of the three attributes below; `module` is run with the role's name."""
        self.role = role
        self.name = name
        self.ready = False
        self.metrics_url = ""
        self.failure: Fatal | None = None
        self._changed = changed
        self._module = module
        self._level = settings.log_level
        # What is logged at info tells when a process is ready, so it is never less; `_take` drops the rest.
        seen = settings.model_copy(update={"log_level": "debug" if settings.log_level == "debug" else "info"})
        self._environment = environment_for(seen, name)
        self._stopping = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._last_words = ""
        self._was_ready = False
        self._stall_timeout_s = settings.stall_timeout_s
        # The thread that starts a process outlives it: Linux signals a parent's death when its *thread* ends.
        self._thread = threading.Thread(target=self._keep_alive, name=f"manyray-{name}", daemon=True)
        self._watching = threading.Thread(target=self._watch, name=f"watch-{name}", daemon=True)

    def start(self) -> None:
        """Start the process; `ready` says when it has its partitions."""
        self._thread.start()
        self._watching.start()

    def send(self, number: signal.Signals) -> None:
        """Signal the process and all that it started; SIGTERM and SIGKILL are not followed by a new start."""
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            with suppress(ProcessLookupError):  # it ended just now
                os.killpg(process.pid, number)

    def join(self, wait_s: float) -> bool:
        """Wait for its end, at most `wait_s`; say whether it has ended."""
        self._thread.join(max(0.0, wait_s))
        return not self._thread.is_alive()

    @property
    def pid(self) -> int:
        """The process's id; 0 before it is started."""
        return self._process.pid if self._process else 0

    def _keep_alive(self) -> None:
        restarts = Restarts()
        while not self._stopping.is_set():
            try:
                code = self._run_once(restarts.count)
            except OSError as error:  # no memory for it, or too many processes: it may be better later
                code, self._last_words = 1, f"it cannot be started: {error}"
            if self._stopping.is_set():
                return
            how = self._last_words or _describe(code)
            if not self._was_ready:
                self._set(failure=Fatal(self._last_words or f"{self.name} could not start: {how}"))
                return
            pause_s = restarts.pause_s(clock.monotonic_s())
            if pause_s is None:
                died = f"{self.name} died {RESTARTS_MAX + 1} times within {WINDOW_S:.0f} s"
                self._set(failure=Fatal(f"{died}: {how}; see its log lines above"))
                return
            told = "%s ended (%s): starting it again in %.1f s, restart %d"
            _log.warning(told, self.name, how, pause_s, restarts.count)
            self._stopping.wait(pause_s)

    def _run_once(self, restarts: int) -> int:
        """Run the process to its end, forwarding what it says, and return its exit code."""
        self._last_words = ""
        self._process = subprocess.Popen(
            # -P: a folder `schemas` in the user's working folder must not hide ours.
            [sys.executable, "-P", "-m", self._module, self.role],
            env={**self._environment, RESTARTS_VARIABLE: str(restarts)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,  # Ctrl-C reaches the supervisor alone, which stops the roles in order
        )
        with self._process as process:
            if self._stopping.is_set():  # `send` may have come before there was a process to signal
                process.terminate()
            assert process.stdout is not None
            for line in process.stdout:
                self._take(line.rstrip("\n"))
        self._set(ready=False, metrics_url="")
        return process.returncode

    def _watch(self) -> None:
        """Kill the process where its own watchdog cannot end it, as when it is stopped or nothing in it gets to run."""
        stalls, answers = Stalls(self._stall_timeout_s), 0
        most_s = stalls.every_s / 2  # a look and the pause after it stay within what counts as watching
        while not self._stopping.wait(min(LIVE_EVERY_S, most_s)):
            url, process = self.metrics_url, self._process
            if not url or process is None:
                continue
            answers += is_live(url, min(LIVE_TIMEOUT_S, most_s))
            stalled = stalls.judge(clock.monotonic_s(), {f"{self.name} ({process.pid})": (answers, 1)})
            if stalled and process.poll() is None and not self._stopping.is_set():
                _log.warning("%s has not said that it is live for %.0f s: killing it", self.name, stalled.for_s)
                with suppress(ProcessLookupError):  # it ended just now
                    os.killpg(process.pid, signal.SIGKILL)

    def _take(self, line: str) -> None:
        """Read one line of the process: what it tells of its state is kept, and what is to be seen forwarded."""
        if line.startswith(_ENDED):
            self._last_words = line.removeprefix(_ENDED)
            return
        logged = _LOGGED.fullmatch(line)
        level, message = logged.groups() if logged else ("error", line)
        if level not in _LEVELS[: _LEVELS.index(self._level)]:
            sys.stderr.write(line + "\n")  # in one write, so that the lines of several processes stay whole
        if message.startswith("metrics on "):
            self._set(metrics_url=message.removeprefix("metrics on "))
        elif message.startswith("ready"):
            self._was_ready = True
            self._set(ready=True)

    def _set(self, **state: Any) -> None:
        with self._changed:
            for name, value in state.items():
                setattr(self, name, value)
            self._changed.notify_all()


def _describe(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class Pipeline:
    """A whole pipeline as processes of this machine, for as long as the `with` block runs.

    The embedded broker runs on `settings.data_dir` unless `settings.bootstrap_servers` names others; its topics are
    created, those of others only checked. `roles` says how many processes of each; one of each if it is not given.
    `module` is what runs a role: a test may start it in another way.
    """

    def __init__(self, settings: Settings, roles: Mapping[str, int] | None = None, *, module: str = "manyray") -> None:
        self.settings = settings
        """As given; with `bootstrap_servers` filled in once it has started."""
        self._roles = dict(roles) if roles is not None else dict.fromkeys(ROLES, 1)
        if unknown := set(self._roles) - set(ROLES):
            raise Fatal(f"unknown role {unknown.pop()}: roles are {', '.join(ROLES)}")
        self._module = module
        self._changed = threading.Condition()
        self._processes: list[RoleProcess] = []
        self._started: Counter[str] = Counter()
        self._broker: Broker | None = None
        self._held = ExitStack()

    def __enter__(self) -> "Pipeline":
        """Start everything, without waiting for it to be ready.

        Raises:
            Fatal: the data directory is in use, the broker cannot start or does not answer, or a topic is wrong.
        """
        version = version_of(self.settings)  # a wrong model is told before anything has started
        try:
            self._held.enter_context(DataDirLock(self.settings.data_dir))
            if not self.settings.bootstrap_servers:
                self._start_broker()
                create_ray(self.settings)
            ray = check_ray(self.settings)
            check_named(self.settings, ray, version)
            for role, count in self._roles.items():
                for _ in range(count):
                    self.start_role(role)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def bootstrap_servers(self) -> str:
        """Where its brokers are, HOST:PORT[,HOST:PORT]."""
        return self.settings.bootstrap_servers

    @property
    def metrics_urls(self) -> dict[str, str]:
        """The Prometheus endpoints of the processes that run, by name: ingest, dedup, dedup-2, encode..."""
        return {process.name: process.metrics_url for process in self._processes if process.metrics_url}

    @property
    def pids(self) -> dict[str, int]:
        """The process ids by name, as in `metrics_urls`."""
        return {process.name: process.pid for process in self._processes}

    def wait_ready(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        """Wait until every process holds its partitions, or `stop` is set.

        Raises:
            Fatal: one of them failed, or they did not get ready in time.
        """
        deadline = clock.monotonic_s() + timeout_s
        with self._changed:
            while late := [process.name for process in self._processes if not process.ready]:
                self.raise_failure()
                if stop is not None and stop.is_set():
                    return
                if clock.monotonic_s() > deadline:
                    raise Fatal(f"{', '.join(late)} not ready after {timeout_s:.0f} s: --log-level debug tells more")
                self._changed.wait(0.2)

    def wait(self, stop: threading.Event) -> None:
        """Wait until `stop` is set.

        Raises:
            Fatal: a process was given up, or the embedded broker has ended.
        """
        while not stop.wait(0.2):
            self.raise_failure()

    def raise_failure(self) -> None:
        """Raise Fatal if the embedded broker has ended, or a process was given up; else do nothing."""
        if self._broker is not None and (failure := self._broker.failure):
            raise failure
        for process in self._processes:
            if process.failure is not None:
                raise process.failure

    def start_role(self, role: str) -> None:
        """Start one more process of a role."""
        self._started[role] += 1
        number = self._started[role]
        port = self.settings.metrics_port and self.settings.metrics_port + len(self._processes)
        name = role if number == 1 else f"{role}-{number}"
        settings = self.settings.model_copy(update={"metrics_port": port})
        process = RoleProcess(role, name, settings, self._changed, self._module)
        self._processes.append(process)
        process.start()

    def stop_role(self, role: str, *, kill: bool = False, wait_s: float = STOP_WAIT_S) -> None:
        """Stop every process of a role: SIGTERM, and after `wait_s` SIGKILL; with `kill` SIGKILL at once."""
        self._stop([process for process in self._processes if process.role == role], kill, wait_s)

    def stop_process(self, name: str, *, kill: bool = False, wait_s: float = STOP_WAIT_S) -> None:
        """Stop one process, by its name in `pids`, as `stop_role` does."""
        self._stop([process for process in self._processes if process.name == name], kill, wait_s)

    def stop(self) -> None:
        """Stop the roles in the order of the flow, then the broker; within 28 s each. Nothing is left behind."""
        # Without their broker roles can neither commit what they have in hand nor end in order: why wait?
        alone = self._broker is not None and self._broker.failure is not None
        try:
            for role in ROLES:
                self.stop_role(role, kill=alone)
        finally:  # a second Ctrl-C ends the waiting
            self._stop(list(self._processes), kill=True, wait_s=STOP_WAIT_S)
            self._broker = None
            self._held.close()

    def _stop(self, processes: list[RoleProcess], kill: bool, wait_s: float) -> None:
        for process in processes:
            process.send(signal.SIGKILL if kill else signal.SIGTERM)
        deadline = clock.monotonic_s() + wait_s
        for process in processes:
            if not process.join(deadline - clock.monotonic_s()):
                _log.warning("%s does not end within %.0f s: killing it", process.name, wait_s)
                process.send(signal.SIGKILL)
                process.join(wait_s)
            self._processes.remove(process)

    def _start_broker(self) -> None:
        self._broker = self._held.enter_context(Broker.start(self.settings.data_dir, log=_log.info))
        self.settings = self.settings.model_copy(update={"bootstrap_servers": self._broker.bootstrap_servers})
        _log.info("embedded broker on %s", self.bootstrap_servers)
