"""Laws of dry runs: a sample that says what a replay would do, and does nothing."""

from io import StringIO
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from manyray.client import Client
from manyray.dry_run import dry_run
from manyray.replaying import Wanted
from manyray.sampling import spread
from streams.checkpoint import read_progress
from streams.jobs import Jobs, Range
from streams.settings import Settings
from streams.topics import Topics
from streams.up import Pipeline
from tests.oracle import post, read_records, send
from tests.replaying import begin, into, run

POSTS, CONTENTS = 2_000, 500
RANGES = st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 200_000)), min_size=1, max_size=5).map(
    lambda pairs: tuple(Range(number, start, start + size) for number, (start, size) in enumerate(pairs))
)


def told(settings: Settings, source: str, **how: float) -> dict[str, str]:
    """What a dry run says, by the words that its lines begin with."""
    out = StringIO()
    console = Console(file=out, width=200)
    console.print(dry_run(settings, Wanted(source, settings.ray, **how)))  # type: ignore[arg-type]
    lines = [line.partition(" ") for line in out.getvalue().splitlines()]
    return {name: rest.strip() for name, _, rest in lines}


@given(RANGES, st.integers(1, 1_000_000))
def test_a_sample_lies_in_the_ranges_and_is_spread_over_all_of_them(ranges: tuple[Range, ...], most: int) -> None:
    """Its parts do not overlap, each range has some, and they have about as many offsets as were asked for."""
    parts = spread(ranges, most)
    for each in ranges:
        mine = sorted((part.start, part.end) for part in parts if part.partition == each.partition)
        assert mine
        assert mine[0][0] >= each.start
        assert mine[-1][1] <= each.end
        assert all(end <= start for (_, end), (start, _) in pairwise(mine))
    total = sum(part.end - part.start for part in parts)
    assert total == sum(each.end - each.start for each in ranges) or total <= most * 1.1 + 10 * len(ranges)


@pytest.mark.broker
def test_a_dry_run_tells_what_a_replay_would_do_and_does_nothing(
    settings: Settings, pipeline: Pipeline, topics: Topics, topic: str
) -> None:
    """Of a range that is read whole all but tokens and seconds is exact, before the replay and after it."""
    send(into(settings, topic), [post(f"old{number}", f"text {number % CONTENTS}") for number in range(POSTS)])
    send(into(settings, topic), [b"{"])
    with Client(settings) as client:
        client.delete(["old7"], topic)
    before = told(settings, topic, share=0.5)
    assert before["sample"] == f"2,002 of 2,002 offsets of {topic}: all, so posts are exact"
    assert before["posts"] == "2,000; 1 rejected, 1 tombstones, 0 filtered out"
    assert before["distinct"] == "500"
    assert before["cached"] == "0 of these"
    assert before["tokens"].endswith("of the 500 to be computed")
    assert "s with 50% of it" in before["encoder"]
    assert not read_records(settings, topics.embeddings)
    assert not Jobs(settings).read()
    lines = [read_progress(settings, topics.checkpoints, at).sources for at in range(settings.partitions)]
    assert not any(lines), "its own lines are ended"
    run(settings, begin(settings, topic, "real"))
    after = told(settings, topic)
    assert after["cached"] == "500 of these"
    assert after["tokens"] == "0 of the 0 to be computed"


@pytest.mark.broker
def test_where_no_dedup_runs_a_dry_run_says_so(
    settings: Settings, topics: Topics, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All contents count as new then."""
    assert topics
    monkeypatch.setattr("streams.probe.ANSWER_S", 1.0)
    send(into(settings, topic), [post("a", "one"), post("b", "two"), post("c", "two")])
    found = told(settings, topic)
    assert found["cached"] == "not known, as no dedup answered"
    assert found["tokens"].endswith("of the 2 to be computed")
