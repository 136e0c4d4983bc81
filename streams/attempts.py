"""How often the same work is tried again, and how long the pause before is."""

import threading
from collections.abc import Callable
from typing import TypeVar

from schemas.errors import Fatal, Retry
from streams import clock

T = TypeVar("T")

ATTEMPTS_MAX = 6
PAUSE_S = 0.1
FORGET_S = 300.0


def with_retries(work: Callable[[], T], stop: threading.Event, recover: Callable[[], None] = lambda: None) -> T:
    """Do `work` and return what it does; after a Retry, pause (doubling from 0.1 s), `recover` and do it again.

    6 times at most. `recover` may itself raise Retry, which counts too.

    Raises:
        Retry: it failed, and `stop` is set.
        Fatal: it failed 6 times in a row.
    """
    failed: Retry | None = None
    for attempt in range(ATTEMPTS_MAX):
        try:
            if failed is not None:
                if stop.wait(PAUSE_S * 2 ** (attempt - 1)):
                    raise failed
                recover()
            return work()
        except Retry as error:
            failed = error
            if stop.is_set():
                raise
    raise Fatal(f"given up after {ATTEMPTS_MAX} attempts: {failed}; check the brokers")


def keep_going(step: Callable[[], bool], recover: Callable[[], None], stop: threading.Event) -> None:
    """Do `step` again and again until `stop` is set; after a Retry, pause, `recover` and go on.

    A step returns whether it committed something: only that, or `FORGET_S` without a failure, ends a row of failures,
    since a step that merely reads succeeds also where nothing can ever be written.

    Raises:
        Fatal: 6 failures came without a commit between them.
    """
    failures = 0
    failed_s = float("-inf")
    broken = False
    while not stop.is_set():
        try:
            if broken:
                if stop.wait(PAUSE_S * 2 ** (failures - 1)):
                    return
                recover()
                broken = False
            if step():
                failures = 0
        except Retry as error:
            now_s = clock.monotonic_s()
            failures, broken = (failures + 1 if now_s - failed_s < FORGET_S else 1), True
            failed_s = now_s
            if failures == ATTEMPTS_MAX:
                raise Fatal(f"given up after {ATTEMPTS_MAX} attempts: {error}; check the brokers") from None
