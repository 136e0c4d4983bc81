"""Named points at which a fault test may strike a role; off, and then a call that does nothing, in any other process.

`MANYRAY__FAILPOINTS` names a folder. A file in it arms the point of its name, and its text says what happens there,
one thing after another where commas part them, as in `hang 0.5, kill`:

    kill            end the process at once, as kill -9 does
    kill SECONDS    the same a moment later, while it goes on
    stop            stop it, as SIGSTOP does, until it gets SIGCONT
    hang            wait for ever
    hang SECONDS    wait for so long
    raise           raise Retry
    crash           raise RuntimeError

Whoever reaches the point removes the file first, so one file strikes once, in one process, however many run.
"""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from schemas.errors import Retry

VARIABLE = "MANYRAY__FAILPOINTS"


def reacher(folder: str | None) -> Callable[[str], None]:
    """What is called at each point with its name; nothing happens there without a folder."""
    if folder is None:
        return lambda _: None

    def reach(point: str) -> None:
        try:
            armed = Path(folder) / point
            text = armed.read_text()
            armed.unlink()
        except FileNotFoundError:  # not armed, or another process was quicker
            return
        for action in text.split(","):
            _strike(point, *action.split())

    return reach


def _strike(point: str, action: str, after_s: str = "") -> None:
    if action == "kill" and after_s:
        threading.Timer(float(after_s), os.kill, (os.getpid(), signal.SIGKILL)).start()
    elif action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "hang":
        threading.Event().wait(float(after_s) if after_s else None)
    elif action == "raise":
        raise Retry(f"failpoint {point}")
    elif action == "crash":
        raise RuntimeError(f"failpoint {point}")
    else:
        raise ValueError(f"failpoint {point}: unknown action {action}")


reach = reacher(os.environ.get(VARIABLE))
"""Say that a point is reached: once a transaction, not once a post."""
