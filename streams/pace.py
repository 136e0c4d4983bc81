"""How fast a replay may go: by the rate asked for, and by how long the stages take for what they have. Pure."""

from dataclasses import dataclass

ROUND_TRIP_S = 0.25
"""What the stages take for what a replay has in flight, at most: posts as they come wait behind it."""
POSTS_MIN, POSTS_MAX = 200, 20_000
BURST_S = 0.2
"""Of a rate, what is sent at once."""


@dataclass(slots=True)
class Pace:
    """How many posts are to be sent next.

    With no rate a transaction is as large as comes back within `ROUND_TRIP_S`: it grows by a quarter while they come
    back sooner, and shrinks as much as they are late (multiplicative increase and decrease on delay, as in TCP Vegas,
    Brakmo and Peterson 1995).
    """

    rate: float | None = None
    """Posts a second."""
    posts: int = POSTS_MIN
    _due_s: float = 0.0

    def came_back(self, posts: int, seconds: float) -> None:
        """Note that so many posts in flight were looked up after so long."""
        if seconds > ROUND_TRIP_S:
            self.posts = max(POSTS_MIN, int(self.posts * max(0.5, ROUND_TRIP_S / seconds)))
        elif posts >= self.posts // 2:  # else nothing was tried
            self.posts = min(POSTS_MAX, self.posts * 5 // 4)

    def next(self, now_s: float) -> tuple[int, float]:
        """How many posts may be sent now, and how long to wait first if none may."""
        if self.rate is None:
            return self.posts, 0.0
        if now_s < self._due_s:
            return 0, self._due_s - now_s
        return max(1, min(self.posts, int(self.rate * BURST_S))), 0.0

    def sent(self, posts: int, now_s: float) -> None:
        """Note what was sent; what was not sent in time is not made good."""
        if self.rate is not None:
            self._due_s = max(self._due_s, now_s - BURST_S) + posts / self.rate
