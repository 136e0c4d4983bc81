"""How a test waits for what other processes bring about."""

from collections.abc import Callable

from streams import clock

WAIT_S = 90.0
"""What takes longer fails the test."""


def wait_until(true: Callable[[], object], what: str, step: Callable[[], object] = lambda: clock.sleep_s(0.05)) -> None:
    """Do `step`, a short rest if not given, again and again until it is true; fail with `what` if it never is."""
    deadline_s = clock.monotonic_s() + WAIT_S
    while not true():
        assert clock.monotonic_s() < deadline_s, f"not within {WAIT_S:.0f} s: {what}"
        step()
