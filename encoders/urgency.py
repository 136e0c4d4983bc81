"""Threads that take the most urgent of the calls that wait for one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from queue import PriorityQueue
from threading import Lock
from typing import Any, TypeVar

T = TypeVar("T")


class UrgentFirst:
    """As `ThreadPoolExecutor`, but of the calls that wait the one that is due first begins next.

    Calls due at the same time begin in the order of `submit`, which any thread may call. What waits is bounded by
    what callers submit.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._waiting: PriorityQueue[tuple[float, int, Future[Any], Callable[[], Any]]] = PriorityQueue()
        self._numbers = count()
        self.unfinished = 0
        """Calls that wait or are being made."""
        self._counting = Lock()

    def submit(self, due_s: float, call: Callable[[], T]) -> Future[T]:
        """Make the call on a thread, before those that are due later."""
        future: Future[T] = Future()
        with self._counting:
            self.unfinished += 1
        self._waiting.put((due_s, next(self._numbers), future, call))
        self._threads.submit(self._begin_next)  # one for each that waits, whichever it will be
        return future

    def _begin_next(self) -> None:
        *_, future, call = self._waiting.get_nowait()
        try:
            if future.set_running_or_notify_cancel():
                future.set_result(call())
        except BaseException as error:  # it is the caller's
            future.set_exception(error)
        finally:
            with self._counting:
                self.unfinished -= 1
