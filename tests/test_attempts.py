"""Laws of trying again."""

import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Fatal, Retry
from streams import clock
from streams.attempts import ATTEMPTS_MAX, FORGET_S, keep_going, with_retries


class Story:
    """Work and its recovery, of which each call fails as told: "w" and "r" are calls of either that fail."""

    def __init__(self, failures):
        self.failures = list(failures)
        self.calls = []

    def work(self):
        """Do it."""
        self._call("work")

    def recover(self):
        """Mend it."""
        self._call("recover")

    def _call(self, name):
        self.calls.append(name)
        if self.failures and self.failures.pop(0):
            raise Retry("the broker is away")


class Pauses(threading.Event):
    """An event whose waits take no time and are written down; with `stops` they end with it set."""

    def __init__(self, told, *, stops=False):
        super().__init__()
        self.told = told
        self.stops = stops

    def wait(self, timeout=None):
        """Whether it is set, at once."""
        self.told.append(timeout)
        if self.stops:
            self.set()
        return self.is_set()


def run(failures):
    """Play a story to its end."""
    story = Story(failures)
    with_retries(story.work, Pauses(story.calls), story.recover)
    return story.calls


def test_work_that_succeeds_is_done_once():
    """No pause, no recovery."""
    assert run([]) == ["work"]


def test_a_failure_is_paused_for_recovered_from_and_done_again():
    """In this order, and the pause doubles from a tenth of a second."""
    assert run([True, False, True, False, False]) == ["work", 0.1, "recover", "work", 0.2, "recover", "work"]


def test_a_recovery_that_fails_counts_as_an_attempt():
    """The work is not tried on what was not mended."""
    assert run([True, True, False, False]) == ["work", 0.1, "recover", 0.2, "recover", "work"]


@given(st.lists(st.booleans(), max_size=30))
def test_work_never_runs_after_a_failure_without_a_recovery(failures):
    """Before each work but the first stands a recovery that succeeded; attempts have a limit."""
    story = Story(failures)
    try:
        with_retries(story.work, Pauses(story.calls), story.recover)
    except Fatal:
        pass
    else:
        assert story.calls[-1] == "work"
    assert all(before == "recover" for before, call in pairwise(story.calls) if call == "work")
    assert sum(isinstance(call, float) for call in story.calls) <= ATTEMPTS_MAX - 1


def test_it_gives_up_and_says_why():
    """After six failures in a row the process ends, with the last cause and a remedy."""
    with pytest.raises(Fatal, match=r"6 attempts.*the broker is away.*check the brokers"):
        run([True] * 100)
    pauses = []
    with pytest.raises(Fatal):
        with_retries(_fail, Pauses(pauses))
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])


def _fail():
    raise Retry("no")


@pytest.mark.parametrize("error", [Fatal("fenced"), ValueError("a bug")])
def test_only_retry_is_tried_again(error):
    """Anything else ends it at once, as it is."""
    story = Story([True])

    def work():
        story.calls.append("work")
        raise error

    with pytest.raises(type(error), match=str(error)):
        with_retries(work, Pauses(story.calls), story.recover)
    assert story.calls == ["work"]


@pytest.mark.parametrize("reads_between", [0, 3])
def test_only_a_commit_ends_a_row_of_failures(reads_between: int) -> None:
    """Steps that merely read between failures do not hide that nothing can be written: the sixth is the last."""
    steps: list[str] = []

    def step() -> bool:
        steps.append("step")
        if len(steps) % (reads_between + 1) == 0:
            raise Retry("the disk of the broker is full")
        return False

    with pytest.raises(Fatal, match="given up after 6 attempts: the disk of the broker is full"):
        keep_going(step, lambda: None, Pauses([]))
    assert len(steps) == 6 * (reads_between + 1)


def test_a_commit_begins_the_count_anew() -> None:
    """Failures that a commit follows may come for ever."""
    steps: list[str] = []
    stop = Pauses([])

    def step() -> bool:
        steps.append("step")
        if len(steps) == 40:
            stop.set()
        if len(steps) % 2:
            raise Retry("the broker is away")
        return True

    keep_going(step, lambda: None, stop)
    assert len(steps) == 40


@pytest.mark.parametrize("when", ["working", "pausing"])
def test_who_is_to_stop_tries_no_more(when: str) -> None:
    """Neither the work nor a recovery, which may take a minute each, is begun after that."""
    calls: list[str] = []
    stop = Pauses([], stops=when == "pausing")

    def work() -> bool:
        calls.append("work")
        if when == "working":
            stop.set()
        raise Retry("the broker is away")

    with pytest.raises(Retry, match="the broker is away"):
        with_retries(work, stop, lambda: calls.append("recover"))
    keep_going(work, lambda: calls.append("recover"), stop)
    assert calls == ["work"]
    stop.clear()
    keep_going(work, lambda: calls.append("recover"), stop)
    assert calls == ["work", "work"]


def test_failures_that_lie_far_apart_are_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A role that is idle for weeks and fails now and then goes on: five minutes without a failure end a row."""
    now_s, steps = [0.0], list[float]()
    stop = Pauses([])
    monkeypatch.setattr(clock, "monotonic_s", lambda: now_s[0])

    def step() -> bool:
        steps.append(now_s[0])
        now_s[0] += FORGET_S
        if len(steps) == 3 * ATTEMPTS_MAX:
            stop.set()
        raise Retry("a rebalance")

    keep_going(step, lambda: None, stop)
    assert len(steps) == 3 * ATTEMPTS_MAX
