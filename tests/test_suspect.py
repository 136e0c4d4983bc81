"""Laws of suspicion: what kills is found within few deaths, and nobody else is blamed for it."""

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.suspect import ATTEMPTS_MAX, TRIES_MAX, Suspicion

counts = st.integers(0, 10**12)
suspicions = st.builds(Suspicion, st.integers(1, 9), counts, counts, st.integers(0, 9), st.sampled_from(["", "a", "b"]))


@given(suspicions)
def test_what_is_written_is_read_by_another(suspicion):
    """Whoever did not begin it finds it as it was left."""
    assert Suspicion.parse(str(suspicion), "c") == suspicion


@pytest.mark.parametrize("metadata", [None, "", "5:1,2,3", "attempts=2", "attempts=x until=1 content=0 tries=0 by=a"])
def test_other_metadata_says_nothing(metadata):
    """Nothing is known where nobody died, or where another program wrote."""
    assert Suspicion.parse(metadata, "me") == Suspicion()
    assert not Suspicion().is_careful
    assert str(Suspicion()) == ""


@given(suspicions)
def test_what_i_began_killed_nobody(suspicion):
    """After a failed transaction a process finds its own marks: it begins again, and counts once."""
    assert Suspicion.parse(str(suspicion.begun(7, "me")), "me").attempts == suspicion.attempts
    again = Suspicion.parse(str(suspicion.tried("me")), "me")
    assert (again.tries, again.content, again.attempts) == (suspicion.tries, suspicion.content, suspicion.attempts)


@dataclass
class Log:
    """A partition of chunks, what is committed of it, and what came out: a model of the encoder around suspicion."""

    chunks: list[list[int]]
    killers: set[int]
    offset: int = 0
    metadata: str = ""
    out: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)

    def own(self, me: str, window_chunks: int, fails: bool) -> bool:
        """One process's life: True if it came to the end, False if it died; `fails` adds a failed transaction."""
        suspicion = Suspicion.parse(self.metadata, me)
        while self.offset < len(self.chunks):
            if suspicion is not None and suspicion.is_careful:
                chunk = self.chunks[self.offset]
                if not suspicion.is_found:
                    self.metadata = str(suspicion.tried(me))
                    if chunk[suspicion.content] in self.killers:
                        return False
                    if fails:
                        suspicion, fails = Suspicion.parse(self.metadata, me), False
                        continue
                (self.rejected if suspicion.is_found else self.out).append(chunk[suspicion.content])
                suspicion = suspicion.after_content()
                if suspicion.content == len(chunk):
                    self.offset += 1
                    suspicion = suspicion.before(self.offset)
                self.metadata = str(suspicion or "")
            else:
                alone = suspicion is not None and suspicion.is_suspect
                window = self.chunks[self.offset : self.offset + (1 if alone else window_chunks)]
                if suspicion is not None:
                    self.metadata = str(suspicion.begun(self.offset + len(window), me))
                    if fails:
                        suspicion, fails = Suspicion.parse(self.metadata, me), False
                        continue
                contents = [content for chunk in window for content in chunk]
                if self.killers & {*contents}:
                    return False
                self.out += contents
                self.offset += len(window)
                suspicion = suspicion and suspicion.before(self.offset)
                self.metadata = str(suspicion or "")
        return True


sizes = st.lists(st.integers(1, 6), min_size=1, max_size=12)


@example([1], {0}, [1], set())
@given(
    sizes, st.sets(st.integers(0, 71), max_size=4), st.lists(st.integers(1, 6), min_size=1), st.sets(st.integers(0, 30))
)
def test_exactly_what_kills_is_rejected(sizes, killers, windows, failing):
    """Whatever the chunks, the windows of each owner and the transactions that fail: killers are rejected, all else
    comes out, each once and in order; each killer costs at most 1 + 2 + 2 deaths where windows are alike, and a few
    more where they shrink from owner to owner.
    """
    contents = iter(range(100))
    log = Log([[next(contents) for _ in range(size)] for size in sizes], killers)
    killers &= set(range(sum(sizes)))
    deaths = 0
    while not log.own(f"owner{deaths}", windows[deaths % len(windows)], deaths in failing):
        deaths += 1
        assert deaths <= len(killers) * (len(set(windows)) + ATTEMPTS_MAX + TRIES_MAX)
    assert log.rejected == sorted(killers)
    assert log.out == sorted(set(range(sum(sizes))) - killers)
    assert log.metadata == ""


def test_two_that_kill_in_one_window_are_counted_from_its_beginning_once():
    """The rest of the window that killed stays under suspicion: the second killer is met with its chunk alone."""
    log = Log([[0], [1], [2], [3]], {1, 3})
    deaths = 0
    while not log.own(f"owner{deaths}", 4, fails=False):
        deaths += 1
    assert deaths == ATTEMPTS_MAX + TRIES_MAX + 1 + TRIES_MAX


def test_one_death_with_a_content_alone_condemns_nobody():
    """It may be an accident, as a machine that goes down: the content is tried once more, and goes through."""
    log = Log([[0, 1]], killers={1}, metadata=str(Suspicion(attempts=2, until=1)))
    assert not log.own("first", 1, fails=False)
    log.killers.clear()
    assert log.own("second", 1, fails=False)
    assert (log.out, log.rejected) == ([0, 1], [])


def test_a_chunk_that_is_not_the_one_it_spoke_of_is_read_from_its_beginning():
    """Retention took the chunk of which some contents were done; the one found instead has them all to do."""
    assert Suspicion(2, 9, 3, 1, "a").elsewhere() == Suspicion(2, 9)
