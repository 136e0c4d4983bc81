"""Laws of how ranges are asked for."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Fatal
from streams import clock
from streams.offsets import Bound, parse_bound


@given(st.dictionaries(st.integers(0, 10_000), st.integers(0, 2**62), min_size=1))
def test_offsets_are_read_as_they_are_written(offsets: dict[int, int]) -> None:
    """Of as many partitions as are named."""
    assert parse_bound(",".join(f"{at}:{offset}" for at, offset in offsets.items()), "--from") == Bound(offsets=offsets)


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("1970-01-02", 86_400_000),
        ("1970-01-01T00:00:01.5", 1_500),
        ("1970-01-01T02:00+02:00", 0),
        ("1970-01-01T00:00:00Z", 0),
        ("1900-01-01", 0),
        ("999999d", 0),
    ],
)
def test_a_time_without_a_zone_is_utc(text: str, time_ms: int) -> None:
    """A zone that is named holds."""
    assert parse_bound(text, "--to") == Bound(time_ms=time_ms)


@pytest.mark.parametrize(("text", "ago_s"), [("90s", 90), ("15m", 900), ("12h", 43_200), ("7d", 604_800)])
def test_a_span_is_so_long_ago(text: str, ago_s: int) -> None:
    """Counted from now."""
    before_ms = clock.now_ms()
    found = parse_bound(text, "--from").time_ms
    assert found is not None
    assert before_ms <= found + ago_s * 1000 <= clock.now_ms()


def test_the_ends_of_a_topic_have_names() -> None:
    """Each at its own end: the other way round nothing would be in between."""
    assert parse_bound("beginning", "--from") == parse_bound("now", "--to") == Bound()
    for text, option in (("now", "--from"), ("beginning", "--to")):
        with pytest.raises(Fatal, match=f"{option} {text} is a range of nothing: leave it out, or name a time"):
            parse_bound(text, option)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "12", "0:", "0:1,", "1:-1", "7w", "2026-13-01", "0:1;1:2", "99999999999d"]
)
def test_what_is_no_bound_is_refused_with_all_that_are(text: str) -> None:
    """The message names each way to write one."""
    with pytest.raises(Fatal, match=re.escape(f"--from {text} is neither of beginning, now, a time (")):
        parse_bound(text, "--from")
