"""How often the same work is tried again, and how long the pause before is."""

from collections.abc import Callable

from schemas.errors import Fatal, Retry

ATTEMPTS_MAX = 6
PAUSE_S = 0.1


def with_retries(work: Callable[[], None], recover: Callable[[], None], pause: Callable[[float], object]) -> None:
    """Do `work`; after a Retry, pause (doubling from 0.1 s), `recover` and do it again, 6 times at most.

    `recover` may itself raise Retry, which counts too.

    Raises:
        Fatal: it failed 6 times in a row.
    """
    failed: Retry | None = None
    for attempt in range(ATTEMPTS_MAX):
        try:
            if failed is not None:
                pause(PAUSE_S * 2 ** (attempt - 1))
                recover()
            work()
        except Retry as error:
            failed = error
        else:
            return
    raise Fatal(f"given up after {ATTEMPTS_MAX} attempts: {failed}; check the brokers")
