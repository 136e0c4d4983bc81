"""Laws of reading a post: what is accepted, why the rest is rejected, and that nothing else can happen."""

import json

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto
from hypothesis import example, given
from hypothesis import strategies as st

from schemas import public_pb2
from schemas.errors import Reject
from schemas.post import ID_BYTES_MAX, REASONS, Post, decode_post, encode_post

TEXT_BYTES_MAX = 1_000

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)
ids = texts.filter(lambda text: len(text.encode()) <= ID_BYTES_MAX)
posts = st.builds(Post, id=ids, text=texts)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
in_json, in_protobuf = True, False


def encode(post_id: str, text: str, as_json: bool) -> bytes:
    """A post as a client that is not ours writes it."""
    if as_json:
        return json.dumps({"id": post_id, "text": text}, ensure_ascii=False).encode()
    return public_pb2.Post(id=post_id, text=text).SerializeToString()


def decode(value: bytes | None) -> Post:
    """With the tests' limit."""
    return decode_post(value, TEXT_BYTES_MAX)


def reason_of(value: bytes | None) -> str:
    """Why a value is rejected; "accepted" if it is not."""
    try:
        decode(value)
    except Reject as error:
        return error.reason
    return "accepted"


@given(posts, st.booleans())
def test_a_post_comes_back_from_either_form(post, as_json):
    """JSON and Protobuf from any client decode to the id and the text that were written."""
    assert decode(encode(post.id, post.text, as_json)) == post


@given(posts)
def test_what_we_encode_we_decode(post):
    """`decode_post` reads what `encode_post` writes."""
    assert decode(encode_post(post)) == post


@given(posts)
def test_escaped_json_means_the_same(post):
    """JSON with every non-ASCII character as an escape, pairs of surrogates included, is the same post."""
    assert decode(json.dumps({"id": post.id, "text": post.text}).encode()) == post


@given(posts, st.dictionaries(texts.filter(lambda key: key not in ("id", "text")), json_values, max_size=4))
def test_unknown_json_fields_are_ignored(post, more):
    """Whatever else a JSON object holds, before or after, the post is the same."""
    own = {"id": post.id, "text": post.text}
    assert decode(json.dumps({**more, **own}).encode()) == post
    assert decode(json.dumps({**own, **more}).encode()) == post


@given(posts, st.integers(4, 500), st.binary(max_size=100))
def test_unknown_protobuf_fields_are_ignored(post, number, content):
    """Fields that a later version adds, which serialisers write after ours, change nothing."""
    tag, length = number << 3 | 2, len(content)
    varint = bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])
    assert decode(encode(post.id, post.text, in_protobuf) + varint + bytes([length]) + content) == post


@given(st.binary(max_size=200))
@example(b"{" + b"[" * 100)
@example(b'{"z":' + b"[" * 100_000)
@example(b'{"id":"a","text":"\\ud800"}')
@example(b'{"id":"\\udc00","text":"x"}')
@example(b"\x12\xff\xff\xff\xff\x0f")
def test_arbitrary_bytes_are_a_post_or_rejected(value):
    """Nothing but a valid post or a Reject with a known reason comes out, whatever the bytes."""
    reason = reason_of(value)
    assert reason in (*REASONS, "accepted")
    if reason == "accepted":
        post = decode(value)
        assert 0 < len(post.id.encode()) <= ID_BYTES_MAX
        assert 0 < len(post.text.encode()) <= TEXT_BYTES_MAX


@given(posts, st.booleans(), st.data())
def test_damaged_posts_are_a_post_or_rejected(post, as_json, data):
    """So it is for a real post with bytes cut, changed or added."""
    value = encode(post.id, post.text, as_json)
    start = data.draw(st.integers(0, len(value)))
    end = data.draw(st.integers(start, min(len(value), start + 3)))
    damaged = value[:start] + data.draw(st.binary(max_size=3)) + value[end:]
    assert reason_of(damaged) in (*REASONS, "accepted")


REJECTED = [
    (None, "no_value"),
    (b"", "no_value"),
    (b"{", "malformed"),
    (b"hello", "malformed"),
    (b"[]", "malformed"),
    (b"7", "malformed"),
    (b'{"id": "a", "text": "b"} c', "malformed"),
    (b'{"id": "a", "text": "\\ud800"}', "malformed"),
    (b'\xef\xbb\xbf{"id": "a", "text": "b"}', "malformed"),
    (b"\x12\x05a", "malformed"),
    (b"\n\x01a", "malformed"),
    (b'{"id": "a", "text": "\xff"}', "not_utf8"),
    (b'{"id": "\xed\xa0\x80", "text": "b"}', "not_utf8"),
    (b"\x12\x01\xff\x1a\x01b", "not_utf8"),
    (b"\x12\x01a\x1a\x03\xed\xa0\x80", "not_utf8"),
    (b'{"text": "b"}', "no_id"),
    (b'{"id": "", "text": "b"}', "no_id"),
    (b'{"id": null, "text": "b"}', "no_id"),
    (b'{"id": 5, "text": "b"}', "no_id"),
    (b"\x1a\x01b", "no_id"),
    (b'{"id": "a"}', "no_text"),
    (b'{"id": "a", "text": ""}', "no_text"),
    (b'{"id": "a", "text": ["b"]}', "no_text"),
    (b"\x12\x01a", "no_text"),
    (encode("i" * 257, "b", in_json), "id_too_long"),
    (encode("é" * 129, "b", in_protobuf), "id_too_long"),
    (encode("a", "t" * 1_001, in_json), "text_too_long"),
    (encode("a", "\U0001f600" * 251, in_protobuf), "text_too_long"),
]


@pytest.mark.parametrize(("value", "reason"), REJECTED)
def test_each_fault_has_its_reason(value, reason):
    """Every kind of bad record, worked by hand."""
    assert reason_of(value) == reason


def test_every_reason_is_reached():
    """No label of the metric, and no reason in the documentation, is dead."""
    assert {reason for _, reason in REJECTED} == set(REASONS)


@given(st.sampled_from(["a", "é", "漢", "\U0001f600"]), st.booleans(), st.integers(0, 3))
def test_limits_count_bytes(character, as_json, more):
    """A limit is on UTF-8 bytes: exactly at it is accepted, one byte past it is rejected."""
    size = len(character.encode())
    for limit, fill in ((ID_BYTES_MAX, "id"), (TEXT_BYTES_MAX, "text")):
        value = character * (limit // size) + "x" * (limit % size)
        over = value + "x" * (1 + more)
        for text, expected in ((value, "accepted"), (over, f"{fill}_too_long")):
            fields = {"post_id": "i", "text": "t"} | {"post_id" if fill == "id" else "text": text}
            assert reason_of(encode(**fields, as_json=as_json)) == expected


def test_the_first_byte_tells_the_form():
    """A Protobuf post begins with the tag of id or text, which no JSON text can; field 1, whose tag is JSON's
    newline, is reserved.
    """
    assert encode("a", "b", in_protobuf)[0] == 0x12
    assert encode("", "b", in_protobuf)[0] == 0x1A
    assert decode(b' \t\r\n{"id": "a", "text": "b"}') == Post("a", "b")
    descriptor = DescriptorProto()
    public_pb2.Post.DESCRIPTOR.CopyToProto(descriptor)
    assert [(reserved.start, reserved.end) for reserved in descriptor.reserved_range] == [(1, 2)]


SECRET = "zqxjkvb"  # letters that stand together in no word of any message


@given(st.text(st.sampled_from('ab é\U0001f600\\"{}[]:,\n'), max_size=8), st.booleans(), st.data())
def test_an_error_never_tells_the_text(text, as_json, data):
    """Neither the detail, which goes into a header, nor the message holds any of the post's text or id."""
    value = encode(SECRET, text + SECRET * 200, as_json)
    cut = data.draw(st.integers(0, len(value)))
    for bad in (
        value,
        value[:cut],
        value[:cut] + b"\xff" + value[cut:],
        value[:cut] + b"\\q" + value[cut:],
        json.dumps({"id": "a", "text": [SECRET]}).encode(),
        json.dumps({"id": {SECRET: 1}, "text": "x"}).encode(),
        json.dumps({"id": SECRET, SECRET: SECRET}).encode(),
    ):
        with pytest.raises(Reject) as caught:
            decode(bad)
        assert SECRET not in f"{caught.value} {caught.value.detail} {caught.value.args}"
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
