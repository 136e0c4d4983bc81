"""Signals that ask a command to stop."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager


class Stop(threading.Event):
    """An event that a signal sets; `number` is that signal's, and 0 before."""

    number = 0


@contextmanager
def stop_on_signals() -> Generator[Stop]:
    """An event that the first SIGINT, SIGTERM or SIGHUP sets; a second one interrupts whatever is then being done."""
    stop = Stop()

    def on_signal(number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.number = number
        stop.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)
    old = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
