"""Laws of finding Kafka's frames in a stream of bytes, with which the proxies tell one reply from another."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from faults.frames import Conversation


def request(api: int, correlation: int, size: int = 20) -> bytes:
    """A frame with a request's head and a body of `size` bytes."""
    head = api.to_bytes(2, "big") + b"\0\1" + correlation.to_bytes(4, "big")
    return (len(head) + size).to_bytes(4, "big") + head + b"q" * size


def reply(correlation: int, size: int = 20) -> bytes:
    """A frame with a reply's head and a body of `size` bytes."""
    return (4 + size).to_bytes(4, "big") + correlation.to_bytes(4, "big") + b"r" * size


@given(
    frames=st.lists(st.tuples(st.sampled_from([0, 3, 26]), st.integers(0, 40), st.booleans()), max_size=12),
    cuts=st.lists(st.integers(0, 600)),
)
def test_frames_are_found_however_the_stream_is_cut(frames, cuts):
    """Every reply is told once with its request's API and its place; requests without a reply are passed over."""
    conversation = Conversation()
    asked = b"".join(request(api, index, size) for index, (api, size, _) in enumerate(frames))
    answers = [(api, reply(index, size)) for index, (api, size, answered) in enumerate(frames) if answered]
    said = b"".join(frame for _, frame in answers)
    begins = itertools.accumulate((len(frame) for _, frame in answers), initial=0)
    expected = [(begin, api) for begin, (api, _) in zip(begins, answers, strict=False)]
    for piece, _ in pieces(asked, cuts):
        conversation.ask(piece)
    found = []
    for piece, at in pieces(said, cuts):
        for start, api in conversation.answer(piece):
            begin = expected[len(found)][0]
            assert start == max(0, begin - at)
            found.append((begin, api))
    assert found == expected


def pieces(data: bytes, cuts: list[int]) -> list[tuple[bytes, int]]:
    """The data cut at these places: each piece, and where it begins."""
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    return [(data[begin:end], begin) for begin, end in itertools.pairwise(places)]


def test_a_stream_that_is_not_kafkas_names_no_api():
    """Lengths that no frame can have end the search."""
    conversation = Conversation()
    conversation.ask(bytes(12) + request(3, 1))
    assert list(conversation.answer(reply(1))) == []
