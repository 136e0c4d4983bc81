"""What stalls: where work waits and nothing moves. Pure: it is fed with what was seen, and a time."""

from collections.abc import Mapping
from dataclasses import dataclass

CHECKS = 4
"""Looks within a time-out: more would find a stall sooner, and ask the brokers more often."""


@dataclass(frozen=True, slots=True)
class Stalled:
    """A place where `waiting` records have waited for `for_s` seconds, and none was taken."""

    place: str
    for_s: float
    waiting: int

    def __str__(self) -> str:
        records = "record" if self.waiting == 1 else "records"
        return f"no progress in {self.place} for {self.for_s:.0f} s with {self.waiting} {records} waiting"


class Stalls:
    """Judges places by how far each got: the same progress for `timeout_s` while something waits is a stall.

    Ask every `every_s`. After a longer silence it starts over: who did not look, because the process slept or was
    stopped, cannot tell a stall from that.
    """

    def __init__(self, timeout_s: float) -> None:
        self.every_s = timeout_s / CHECKS
        self._timeout_s = timeout_s
        self._looked_s = float("-inf")
        self._beat = 0
        self._since: dict[str, tuple[int, float]] = {}

    def judge(self, now_s: float, seen: Mapping[str, tuple[int, int]], beat: int = 0) -> Stalled | None:
        """The place that has stood still longest, once that is `timeout_s`; None while there is none.

        `seen` has the progress and the number of waiting records by place. A place that is not in it, because nothing
        is known of it now, starts over; so does every place when `beat` has changed.
        """
        if now_s - self._looked_s > 2 * self.every_s or beat != self._beat:
            self._since.clear()
        self._looked_s, self._beat = now_s, beat
        since: dict[str, tuple[int, float]] = {}
        for place, (progress, waiting) in seen.items():
            if waiting > 0:
                before = self._since.get(place)
                since[place] = before if before is not None and before[0] == progress else (progress, now_s)
        self._since = since
        if not since:
            return None
        place = min(since, key=lambda one: since[one][1])
        for_s = now_s - since[place][1]
        return Stalled(place, for_s, seen[place][1]) if for_s >= self._timeout_s else None
