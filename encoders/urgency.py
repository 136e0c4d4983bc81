"""Threads for calls of two kinds: urgent ones, which wait for no other, and patient ones, which take what is left."""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

# The shared clock lives in a package above this one; this is the same.
from time import monotonic  # noqa: TID251
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE_S = 10.0
"""So often, unless told otherwise, a patient call is made as an urgent one where these leave it no room: what stands
still looks stalled.
"""
_NICENESS = 10
"""Of patient threads: beside an urgent one such a thread has a tenth of a core, and alone all of it."""


class UrgentFirst:
    """As `ThreadPoolExecutor`, but patient calls begin on threads that are free, and urgent ones beside those.

    Urgent calls have as many threads of their own, which on Linux the operating system prefers if `is_nice`: so they
    wait neither for the end of a patient call nor for their share of a core. Calls of a kind begin in the order of
    `submit`, which any thread may call. What waits is bounded by what callers submit.
    """

    def __init__(
        self,
        threads: int,
        name: str,
        *,
        is_nice: bool,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._count, self._patience_s, self._clock = threads, patience_s, clock
        step_back = _step_back if is_nice and sys.platform == "linux" else None
        # Threads of their own, as one that has stepped back may not step forward again.
        self._threads = {
            True: ThreadPoolExecutor(threads, f"{name}-urgent"),
            False: ThreadPoolExecutor(threads, f"{name}-patient", step_back),
        }
        self._urgent: deque[_Waiting] = deque()
        self._patient: deque[_Waiting] = deque()
        self._patient_s = clock()
        """When the last patient call began."""
        self._running = {True: 0, False: 0}
        """By the threads that they are made on."""
        self._changing = threading.Lock()

    @property
    def unfinished(self) -> int:
        """Calls that wait or are being made, about."""
        return len(self._urgent) + len(self._patient) + sum(self._running.values())

    def submit(self, call: Callable[[], T], is_urgent: bool = True) -> Future[T]:
        """Make the call on a thread."""
        future: Future[T] = Future()
        with self._changing:
            (self._urgent if is_urgent else self._patient).append(_Waiting(future, call, self._clock()))
            self._begin()
        return future

    def _begin(self) -> None:
        """Begin with what may begin; the caller holds the lock."""
        while self._urgent or self._patient:
            is_overdue = self._is_overdue()
            on_urgent = is_overdue or bool(self._urgent)
            if (self._running[True] if on_urgent else sum(self._running.values())) >= self._count:
                return
            if is_overdue or not self._urgent:
                next_one, self._patient_s = self._patient.popleft(), self._clock()
            else:
                next_one = self._urgent.popleft()
            self._running[on_urgent] += 1
            self._threads[on_urgent].submit(self._make, next_one, on_urgent)

    def _is_overdue(self) -> bool:
        if not self._patient or self._running[False]:
            return False
        return self._clock() - max(self._patient[0].since_s, self._patient_s) >= self._patience_s

    def _make(self, waiting: "_Waiting", on_urgent: bool) -> None:
        is_wanted = waiting.future.set_running_or_notify_cancel()
        try:
            result = waiting.call() if is_wanted else None
        except BaseException as error:  # it is the caller's
            self._end(on_urgent)
            waiting.future.set_exception(error)
        else:
            self._end(on_urgent)
            if is_wanted:
                waiting.future.set_result(result)

    def _end(self, on_urgent: bool) -> None:
        """A thread is free; said before the caller is told, who may submit the next at once."""
        with self._changing:
            self._running[on_urgent] -= 1
            self._begin()


@dataclass(frozen=True, slots=True)
class _Waiting:
    future: Future[Any]
    call: Callable[[], Any]
    since_s: float


def _step_back() -> None:
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS))
