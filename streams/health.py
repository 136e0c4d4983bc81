"""What `/ready` and `/live` say of a process: written by its role and its watchdog, asked by the endpoint's threads."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

JOINING = "it is joining its group"
"""What a role waits for that may never come: the watchdog bounds it."""


@dataclass(slots=True)
class Health:
    """The state of one process. Each reason is one line, and empty where there is none."""

    stop: threading.Event
    """Set once the process is told to stop."""
    waits_for: Callable[[], str] = lambda: "it is starting"
    """Why the role does not serve its partitions now; set by the role."""
    stalled: str = ""
    """Where the process makes no progress; set by its watchdog."""

    def why_not_ready(self) -> str:
        """Why it serves nothing now."""
        return "it is stopping" if self.stop.is_set() else self.stalled or self.waits_for()

    def why_not_live(self) -> str:
        """Why it is to be started again."""
        return self.stalled
