"""When a role that died is started again, and when it is given up. Pure."""

from collections import deque

PAUSE_S = 0.5
PAUSE_MAX_S = 15.0
RESTARTS_MAX = 10
WINDOW_S = 300.0
"""What happened longer ago is forgotten."""


class Restarts:
    """The deaths of one role's process: each within the window doubles the pause before the next start."""

    def __init__(self) -> None:
        self.count = 0
        self._recent: deque[float] = deque()

    def pause_s(self, now_s: float) -> float | None:
        """How long to wait before the start that follows a death at `now_s`; None if there were too many."""
        while self._recent and now_s - self._recent[0] >= WINDOW_S:
            self._recent.popleft()
        if len(self._recent) == RESTARTS_MAX:
            return None
        pause_s = min(PAUSE_S * 2 ** len(self._recent), PAUSE_MAX_S)
        self._recent.append(now_s)
        self.count += 1
        return pause_s
