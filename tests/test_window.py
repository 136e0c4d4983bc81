"""Laws of the encoder's window: what it gathers, and when it is due."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.internal_pb2 import Chunk
from streams.window import POST_BYTES_MAX, Window


def fingerprint(number: int) -> bytes:
    """The fingerprint of content `number`."""
    return number.to_bytes(16, "big")


def chunk_of(contents):
    """A chunk of the contents of those numbers, with a post each; a number stands for its own text."""
    return Chunk(
        fingerprints=b"".join(fingerprint(number) for number in contents),
        texts=[str(number).encode() * number for number in contents],
        ids=[f"id{number}" for number in contents],
        contents=list(range(len(contents))),
    )


chunks = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True), min_size=1, max_size=8)


def gather(load):
    """A window of those chunks, one a second, alternating between two partitions."""
    window = Window()
    for number, contents in enumerate(load):
        window.add(chunk_of(contents), ("misses", number % 2), 100 + number, 50.0 + number)
    return window


@given(chunks)
def test_each_distinct_content_is_held_once(load):
    """Texts are those of the distinct contents, in the order in which they were first met."""
    expected = dict.fromkeys(number for contents in load for number in contents)
    assert list(gather(load).texts.items()) == [
        (fingerprint(number), str(number).encode() * number) for number in expected
    ]


@given(chunks)
def test_every_post_and_offset_is_counted(load):
    """All posts, and of every partition the offset after the last chunk."""
    window = gather(load)
    assert window.posts == sum(len(contents) for contents in load)
    # Of equal keys the last one counts.
    assert window.next_offsets == {("misses", number % 2): 101 + number for number in range(len(load))}


@given(chunks)
def test_a_repeated_content_costs_no_tokens(load):
    """Tokens count distinct contents only, at least one each, whatever the order of the chunks."""
    window = gather(load)
    assert window.tokens == gather([*load, *load]).tokens == gather(load[::-1]).tokens
    assert window.tokens >= len(window.texts)


def test_an_empty_window_is_never_due():
    """There is nothing to compute, however long it waits."""
    assert not Window().is_old(1e9, 0.0)
    assert not Window().is_full(1, 1)


@given(chunks, st.integers(0, 100), st.integers(0, 100))
def test_it_is_due_when_full_or_old(load, wait_s, age_s):
    """Full in tokens or in posts, or its first chunk has waited long enough; younger ones make it wait no longer."""
    window = gather(load)
    assert window.is_old(50.0 + age_s, wait_s) == (age_s >= wait_s)
    assert window.is_full(window.tokens, window.posts + 1)
    assert window.is_full(window.tokens + 1, window.posts)
    assert not window.is_full(window.tokens + 1, window.posts + 1)


def test_repeats_of_a_long_text_fill_it_too():
    """Each post counts with its text: they are read back if the text is rejected. Not by tokens, nor by posts."""
    text, window = b"x" * 65_536, Window()
    chunk = Chunk(fingerprints=fingerprint(1), texts=[text], ids=["id"] * 128, contents=[0] * 128)
    while not window.is_full(10**9, 10**9):
        window.add(chunk, ("misses", 0), 0, 0.0)
    assert window.posts * len(text) == POST_BYTES_MAX


def test_a_chunk_with_columns_of_unequal_length_is_refused():
    """Fingerprints and texts stand in pairs; a chunk that lost one must not shift the others."""
    chunk = chunk_of([1, 2])
    del chunk.texts[1]
    with pytest.raises(ValueError, match="zip"):
        Window().add(chunk, ("misses", 0), 0, 0.0)
