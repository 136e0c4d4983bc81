"""How fast a replay may go: by the rate asked for, and by how long the stages take for what they have. Pure."""

from collections import deque
from dataclasses import dataclass, field

ROUND_TRIP_S = 2.0
"""What dedup takes for what a replay has in flight, at most."""
LIVE_EXTRA_S = 0.05
"""The same beside live posts, which wait behind it: so much more than the least that it ever took."""
IN_FLIGHT_MAX = 4
POSTS_MIN, POSTS_MAX = 200, 10_000
WAITING_MIN = 20
"""Records of misses, of up to 100 posts each, that may wait for the encoder whatever its speed."""
WAITING_S = 5.0
"""Of its work, what may wait for the encoder: it never runs dry, and a pause is soon felt."""
BURST_S = 0.2
"""Of a rate, what is sent at once."""


@dataclass(slots=True)
class Pace:
    """How many posts are to be sent next.

    With no rate a transaction is as large as comes back in time: it grows by a quarter while they come back sooner (to
    double before the first is late), and shrinks as much as they are late (increase and decrease on delay above the
    least that was seen, as in TCP Vegas, Brakmo and Peterson 1995).
    """

    rate: float | None = None
    """Posts a second."""
    posts: int = POSTS_MIN
    live_posts_max: int = POSTS_MAX
    """Posts of a transaction beside live ones, which wait behind one transaction."""
    is_beside_live: bool = False
    """Whether live posts come now."""
    _least_s: float = ROUND_TRIP_S
    _is_starting: bool = True
    _due_s: float = 0.0

    @property
    def in_flight_max(self) -> int:
        """Transactions that dedup has not looked up, at most."""
        return 1 if self.is_beside_live else IN_FLIGHT_MAX

    def came_back(self, posts: int, seconds: float) -> None:
        """Note that so many posts in flight were looked up after so long."""
        self._least_s = min(self._least_s, seconds)
        limit_s = min(ROUND_TRIP_S, self._least_s + LIVE_EXTRA_S) if self.is_beside_live else ROUND_TRIP_S
        if seconds > limit_s:
            self._is_starting = False
            self.posts = max(POSTS_MIN, int(self.posts * max(0.5, limit_s / seconds)))
        elif posts >= self.posts // 2:  # else nothing was tried
            self.posts = min(POSTS_MAX, self.posts * 2 if self._is_starting else self.posts * 5 // 4)

    def held_up(self) -> None:
        """Note that the encoder has enough to do for now."""
        self._is_starting = False
        self.posts = max(POSTS_MIN, self.posts // 2)

    def next(self, now_s: float) -> tuple[int, float]:
        """How many posts may be sent now, and how long to wait first if none may."""
        most = min(self.posts, self.live_posts_max) if self.is_beside_live else self.posts
        if self.rate is None:
            return most, 0.0
        if now_s < self._due_s:
            return 0, self._due_s - now_s
        return max(1, min(most, int(self.rate * BURST_S))), 0.0

    def sent(self, posts: int, now_s: float) -> None:
        """Note what was sent; what was not sent in time is not made good."""
        if self.rate is not None:
            self._due_s = max(self._due_s, now_s - BURST_S) + posts / self.rate


@dataclass(slots=True)
class Cushion:
    """How many records of misses may wait for the encoder, by how many it took within the last `WAITING_S`."""

    _seen: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])

    def most(self, encoded: int, now_s: float) -> int:
        """The most that may wait, now that it has taken so many in all."""
        self._seen.append((now_s, encoded))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= WAITING_S:
            self._seen.popleft()
        since_s, before = self._seen[0]
        seconds = max(now_s - since_s, WAITING_S)
        return max(WAITING_MIN, int((encoded - before) * WAITING_S / seconds))
