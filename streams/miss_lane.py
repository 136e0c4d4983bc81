"""One lane of misses on its way through the encoder: what is read, gathered and under way."""

from collections import deque
from dataclasses import dataclass, field

from encoders.engine import IN_FLIGHT_MAX
from streams import clock
from streams.group import Member
from streams.submitted import Submitted
from streams.suspicions import Suspicions
from streams.window import Window


@dataclass(slots=True)
class MissLane:
    """A member of the lane's group, the window that it gathers, and those that are under way, in order.

    is_urgent: its windows are computed before those of other lanes.
    """

    member: Member
    suspicions: Suspicions
    is_urgent: bool
    window: Window = field(default_factory=Window)
    in_flight: deque[Submitted] = field(default_factory=deque[Submitted])
    published_s: float = 0.0
    """When it last published a window."""
    rests_until_s: float = 0.0
    """No window begins before."""

    @property
    def is_computed(self) -> bool:
        """Whether a window is to be published."""
        return bool(self.in_flight) and self.in_flight[0].future.done()

    def may_begin(self) -> bool:
        """Whether one more window may be computed. The first one of a partition is alone: if we die, it was that.

        So is one of a share of the encoder's time.
        """
        if not self.in_flight:
            return clock.monotonic_s() >= self.rests_until_s
        last = self.in_flight[-1].window
        if min(last.share, self.window.share) < 1:
            return False
        return len(self.in_flight) < IN_FLIGHT_MAX and not self.suspicions.is_open(self.window, last)

    def take(self) -> Window:
        """The window that was gathered; the next one begins."""
        taken, self.window = self.window, Window()
        return taken

    def published(self, window: Window, encode_s: float, rest_s_max: float) -> None:
        """Note that a window is published that took the encoder so long: of a share of its time, it rests for the rest.

        Not for longer than `rest_s_max`, or it would look stalled.
        """
        self.published_s = clock.monotonic_s()
        self.rests_until_s = self.published_s + min(encode_s / window.share - encode_s, rest_s_max)

    def drop(self) -> None:
        """Forget what is read and not published: it is read again, here or by another."""
        for submitted in self.in_flight:
            submitted.future.cancel()
        self.in_flight.clear()
        self.window = Window()
        self.suspicions.clear()
