"""Laws of the threads that compute batches: urgent calls wait for no patient one, and these are not forgotten."""

import os
import sys
import threading

import pytest

from encoders.urgency import PATIENCE_S, UrgentFirst

WAIT_S = 20


@pytest.fixture
def now():
    """A clock that a test sets."""
    return [0.0]


@pytest.fixture
def hold(now):
    """Begins calls of a kind, each at work until it is ended, on two threads of each kind."""
    return Holder(UrgentFirst(2, "test", is_nice=True, clock=lambda: now[0]))


class Holder:
    """Calls by name, and the order in which they began."""

    def __init__(self, threads):
        self.threads = threads
        self.begun = []
        self._held = {}

    def urgent(self, *names):
        """Submit urgent calls."""
        self._submit(names, is_urgent=True)

    def patient(self, *names):
        """Submit patient calls."""
        self._submit(names, is_urgent=False)

    def await_begin(self, *names):
        """Wait until calls are at work."""
        for name in names:
            assert self._held[name][1].wait(WAIT_S)

    def end(self, *names):
        """Let calls go, one after another once each is at work; what follows it may begin a moment later."""
        for name in names:
            self.await_begin(name)
            future, _, gate = self._held[name]
            gate.set()
            future.result(WAIT_S)

    def _submit(self, names, *, is_urgent):
        for name in names:
            at_work, gate = threading.Event(), threading.Event()

            def call(name=name, at_work=at_work, gate=gate):
                self.begun.append(name)
                at_work.set()
                assert gate.wait(WAIT_S)

            self._held[name] = (self.threads.submit(call, is_urgent), at_work, gate)


def niceness():
    """Of the thread that asks."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_urgent_calls_do_not_wait_for_patient_ones(hold):
    """Where patient calls have all threads as many urgent ones begin, a third of either kind waits for its own."""
    hold.patient("p0", "p1", "p2")
    hold.urgent("u0", "u1", "u2")
    assert hold.threads.unfinished == 6
    hold.await_begin("p0", "p1", "u0", "u1")
    hold.end("u0", "u2", "u1")
    hold.end("p0", "p2", "p1")
    assert hold.begun[4:] == ["u2", "p2"]


def test_patient_calls_begin_on_free_threads_alone(hold):
    """While urgent ones have all of them, or wait for one, none begins."""
    hold.urgent("u0", "u1")
    hold.await_begin("u0", "u1")
    hold.patient("p0")
    hold.urgent("u2")
    hold.end("u0", "u2", "p0", "u1")
    assert hold.begun[2:] == ["u2", "p0"]


def test_a_patient_call_begins_in_the_end(hold, now):
    """While urgent ones have all threads, and more of them wait, a patient one takes a turn once in a while."""
    hold.urgent(*"0123456")
    hold.patient("p0", "p1")
    hold.end("0", "2")
    now[0] = PATIENCE_S
    hold.end("1", "p0", "3")
    now[0] = 2 * PATIENCE_S
    hold.end("4", "p1", "5", "6")
    order = {name: place for place, name in enumerate(hold.begun)}
    assert order["2"] < order["p0"] < order["5"]
    assert order["4"] < order["p1"] < order["6"]


def test_slow_patient_calls_are_not_taken_for_forgotten_ones(hold, now):
    """However long those on the threads take, no other begins beside them."""
    hold.patient("p0", "p1", "p2")
    hold.await_begin("p0", "p1")
    now[0] = 5 * PATIENCE_S
    hold.urgent("u0")
    hold.end("u0")
    hold.urgent("u1")
    hold.end("u1", "p0", "p2", "p1")
    assert hold.begun[2:] == ["u0", "u1", "p2"]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux alone")
def test_patient_calls_step_back(hold, now):
    """The operating system prefers urgent ones, and a patient one that takes a turn of theirs."""
    assert hold.threads.submit(niceness, is_urgent=True).result(WAIT_S) == niceness()
    assert hold.threads.submit(niceness, is_urgent=False).result(WAIT_S) == min(19, niceness() + 10)
    assert hold.threads.unfinished == 0
    hold.urgent("u0", "u1", "u2")
    overdue = hold.threads.submit(niceness, is_urgent=False)
    now[0] = PATIENCE_S
    hold.end("u0", "u1", "u2")
    assert overdue.result(WAIT_S) == niceness()
    plain = UrgentFirst(1, "plain", is_nice=False)
    assert plain.submit(niceness, is_urgent=False).result(WAIT_S) == niceness()


def test_calls_of_a_kind_begin_in_order(hold):
    """A cancelled one is left out."""
    begun = []
    hold.urgent("u0", "u1")
    futures = [hold.threads.submit(lambda call=call: begun.append(call)) for call in range(5)]
    futures[2].cancel()
    hold.end("u0")
    for future in (*futures[:2], *futures[3:]):
        future.result(WAIT_S)
    hold.end("u1")
    assert begun == [0, 1, 3, 4]


def test_an_error_of_a_call_is_its_own(hold):
    """The thread goes on with the next one."""
    bad, good = hold.threads.submit(lambda: {}["a"]), hold.threads.submit(lambda: 7)
    with pytest.raises(KeyError):
        bad.result(WAIT_S)
    assert good.result(WAIT_S) == 7
