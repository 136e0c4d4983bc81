"""Rows 1 to 4 and 14: processes that are killed, stopped, or fail at the worst step."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

from faults.fault import FAULTS, Fault, Strike, add
from faults.frames import Api
from faults.run import FAILURES, Run

STEPS = {
    "dedup": ("began", "sent", "committing", "committed", "acking", "acked", "learning"),
    "ingest": ("began", "sent", "committing", "committed"),
    "encode": ("computing", "began", "sent", "committing", "committed"),
}
ROWS = {"dedup": 1, "ingest": 2, "encode": 3}
KILLED_S = (1.0, 30.0)
KILLED_WITH_STANDBY_S = (1.0, 15.0)
"""How long output may be silent after kill -9 of a role."""
FROZEN_S = (4.0, math.inf)
"""A session of 6 s, less the time since its last heartbeat."""
OPEN_S = (8.0, math.inf)
"""A transaction that nobody ends runs out of time after 10 s; readers wait for that."""
COMMIT_S = 0.03
"""About what a commit takes: a kill within it strikes before, in, or after what the coordinator does."""

FLUSHED = "hang 0.5, "
"""What comes after it, comes when the outputs are on the brokers: a producer sends them within linger.ms, 5."""
DECIDED_S = 1.0
"""Every role has then asked for a commit, and the coordinator has written it."""
BEHIND_S = 2.0
"""Shorter than the sessions of members, 6 s."""


def _kill_at(role: str, step: str, before: str = "") -> Strike:
    def strike(run: Run) -> None:
        after_s = f" {run.random.random() * COMMIT_S:.4f}" if step == "committing" else ""
        run.strike_at(f"{role}.{step}", f"{before}kill{after_s}")

    return strike


def _kill_when_decided(role: str) -> Strike:
    """Kill a process whose transaction is committed, and which was not told so."""

    def strike(run: Run) -> None:
        link = run.cluster.clients(1)
        before = link.held
        link.hold_replies([Api.END_TXN])
        run.wait_until(lambda: link.held > before, "a reply is held back")
        run.rest(DECIDED_S)
        run.kill(role)
        link.heal()

    return strike


def _freeze_at(role: str, step: str, before: str = "") -> Strike:
    """Stop the owner within a transaction, let a successor take over and commit, then let the owner go on."""

    def strike(run: Run) -> None:
        failures = run.by_process(FAILURES)
        run.strike_at(f"{role}.{step}", f"{before}stop")
        run.wait_until(lambda: _stopped(run), f"a process of {role} is stopped")
        (zombie,) = _stopped(run)
        run.await_flow()
        before_it = {process: count for process, count in failures.items() if process[1] == zombie}
        os.kill(zombie, signal.SIGCONT)
        run.wait_until(lambda: run.failed_since(before_it), "what the owner was about to do fails")

    return strike


def _stopped(run: Run) -> list[int]:
    return [pid for pid in run.pipeline.pids.values() if _state(pid) == "T"]


def _state(pid: int) -> str:
    """One letter, as `ps` shows it: T is stopped by a signal."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except FileNotFoundError:
        return ""


def _fail_at(role: str, step: str, action: str) -> Strike:
    """Fail at the head, while more waits behind it."""

    def strike(run: Run) -> None:
        run.kill(role, signal.SIGSTOP)
        run.rest(BEHIND_S)
        run.arm(f"{role}.{step}", action)
        run.kill(role, signal.SIGCONT)
        run.wait_until(lambda: not (run.points / f"{role}.{step}").exists(), f"{role}.{step} is reached")

    return strike


for _role, _steps in STEPS.items():
    for _step in _steps:
        add(Fault(f"kill-{_role}-{_step}", ROWS[_role], _kill_at(_role, _step), silent_s=KILLED_S))
    add(Fault(f"kill-{_role}-decided", ROWS[_role], _kill_when_decided(_role), silent_s=KILLED_S))
    _row, _two, _flushed = ROWS[_role], {_role: 2}, _kill_at(_role, "sent", FLUSHED)
    add(Fault(f"kill-{_role}-flushed", _row, _flushed, silent_s=KILLED_S))
    _twice = {"delivery": "at_least_once"}
    add(Fault(f"kill-{_role}-at-least-once", _row, _flushed, settings=_twice, doubles=True, silent_s=KILLED_S))
    for _name, _strike in (("", _kill_at(_role, "sent")), ("flushed-", _flushed)):
        _name = f"kill-{_role}-{_name}with-standby"
        add(Fault(_name, _row, _strike, roles=_two, silent_s=KILLED_WITH_STANDBY_S))
    for _step in ("began", "sent"):
        add(Fault(f"zombie-{_role}-{_step}", 4, _freeze_at(_role, _step), roles=_two, silent_s=FROZEN_S))
    _until = FROZEN_S if _role == "dedup" else OPEN_S  # dedup's successor fences it, and so ends its transaction
    add(Fault(f"zombie-{_role}-flushed", 4, _freeze_at(_role, "sent", FLUSHED), roles=_two, silent_s=_until))
    add(Fault(f"retry-{_role}-before-commit", 14, _fail_at(_role, "sent", "raise")))
    add(Fault(f"retry-{_role}-after-commit", 14, _fail_at(_role, "committed", "raise")))
    add(Fault(f"crash-{_role}-after-commit", 14, _fail_at(_role, "committed", "crash")))

_both = {"backfill_topics": ("old",)}
"""Every second post is of a backfill."""
for _name in ("kill-encode-computing", "kill-encode-flushed", "zombie-encode-sent", "retry-encode-after-commit"):
    add(replace(FAULTS[_name], name=f"{_name}-with-backfill", settings=_both))
