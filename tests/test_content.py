"""Laws of content: what makes two posts the same, and where their vector lives."""

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.content import (
    FINGERPRINT_BYTES,
    fingerprinter,
    fingerprints_in,
    hasher,
    is_in_share,
    normalise,
    partition_of,
    split_fingerprints,
)

texts = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    st.sampled_from("e\u0301\u00e9\r\n a\u212b\u0958\uac00\u1100\u1161")
)


@given(texts)
def test_normalising_twice_is_normalising_once(text):
    """Idempotent: a normalised content is its own."""
    assert normalise(normalise(text)) == normalise(text)


@given(texts)
def test_normalised_is_nfc_with_line_feeds(text):
    """No carriage return stays, and Unicode is in NFC."""
    normal = normalise(text)
    assert "\r" not in normal
    assert unicodedata.is_normalized("NFC", normal)


@given(texts)
def test_nothing_else_is_changed(text):
    """Line ends and canonical equivalence are all: case, spaces and compatibility characters stay."""
    ends = text.replace("\r\n", "\n").replace("\r", "\n")
    assert unicodedata.normalize("NFD", normalise(text)) == unicodedata.normalize("NFD", ends)


@given(texts)
def test_canonically_equal_texts_have_one_fingerprint(text):
    """However a client composes its characters and ends its lines, it is one content."""
    fingerprint = fingerprinter("v")
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    windows = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
    assert (
        fingerprint(normalise(composed).encode())
        == fingerprint(normalise(decomposed).encode())
        == fingerprint(normalise(windows).encode())
    )


@given(st.binary(), st.text(max_size=20), st.text(max_size=20))
def test_a_fingerprint_has_16_bytes_and_is_a_function(content, version, salt):
    """The same every time, from any fingerprinter of that version and salt, 16 bytes long."""
    one, other = fingerprinter(version, salt), fingerprinter(version, salt)
    assert len(one(content)) == FINGERPRINT_BYTES == 16
    assert one(content) == other(content) == one(content)


@given(
    st.binary(max_size=20),
    st.lists(st.tuples(st.text("1:ab", max_size=4), st.text("1:ab", max_size=4)), min_size=2, max_size=2, unique=True),
)
def test_another_version_or_salt_is_another_fingerprint(content, keys):
    """No two pairs of version and salt share fingerprints, also where their concatenations are the same."""
    (version, salt), (other_version, other_salt) = keys
    assert fingerprinter(version, salt)(content) != fingerprinter(other_version, other_salt)(content)


@given(st.lists(st.binary(min_size=16, max_size=16)), st.text(max_size=12))
def test_hashes_become_fingerprints_one_by_one(hashes, version):
    """Each keeps its place, equal ones stay equal, and no two become one: what is done twice is undone."""
    fingerprints = fingerprints_in(version)
    found = split_fingerprints(fingerprints(b"".join(hashes)))
    assert found == [fingerprints(each) for each in hashes]
    assert [partition_of(each, 7) for each in found] == [partition_of(each, 7) for each in hashes]
    assert fingerprints(b"".join(found)) == b"".join(hashes)


def test_a_share_of_contents_is_about_so_many_and_always_the_same():
    """Of 20,000, and of each partition; a larger share has them too. All are in 1, and none in 0."""
    hash_of = hasher()
    hashes = [hash_of(str(number).encode()) for number in range(20_000)]
    shares = [{each for each in hashes if is_in_share(each, share)} for share in (0.0, 0.1, 0.5, 1.0)]
    assert all(smaller <= larger for smaller, larger in pairwise(shares))
    assert (len(shares[0]), len(shares[3])) == (0, 20_000)
    assert len(shares[1]) == pytest.approx(2_000, rel=0.1)
    of_partitions = np.bincount([partition_of(each, 4) for each in shares[2]], minlength=4)
    assert of_partitions == pytest.approx([2_500] * 4, rel=0.1)


# Never edited: a table on disk is found by these.
GOLDEN = [
    ("", "", b"", "412e94f534a4c6561d6c6e6063cb35cd"),
    ("0123456789ab", "", b"hello", "a0909977466e324120a9da57962c90ae"),
    ("0123456789ab", "tenant", b"hello", "9db4456b087026a687b86514814c06f0"),
    ("0123456789ab", "", "Grüße \U0001f600\n".encode(), "180ab29805b56120fb707b542e72ca69"),
]


@pytest.mark.parametrize(("version", "salt", "content", "expected"), GOLDEN)
def test_fingerprints_are_what_they_have_always_been(version, salt, content, expected):
    """Golden vectors: a change here makes every table useless."""
    assert fingerprinter(version, salt)(content).hex() == expected


@pytest.mark.parametrize(
    ("fingerprint", "partitions", "expected"),
    [
        ("00" * 16, 4, 0),
        ("05000000" + "ff" * 12, 4, 1),
        ("ffffffff" + "00" * 12, 10, 5),
        ("00000001" + "00" * 12, 10, 6),
    ],
)
def test_partitions_are_what_they_have_always_been(fingerprint, partitions, expected):
    """Golden vectors: the first four bytes, little-endian, modulo the number of partitions."""
    assert partition_of(bytes.fromhex(fingerprint), partitions) == expected


@given(st.binary(min_size=16, max_size=16), st.integers(1, 256))
def test_a_partition_is_one_of_them(fingerprint, partitions):
    """From 0 to partitions - 1."""
    assert 0 <= partition_of(fingerprint, partitions) < partitions


@pytest.mark.parametrize("partitions", [2, 3, 4, 7, 16])
def test_partitions_are_about_even(partitions):
    """Of 20,000 contents none gets 10 % more or less than its share (6 standard deviations at 16 partitions)."""
    fingerprint = fingerprinter("v")
    found = [partition_of(fingerprint(str(number).encode()), partitions) for number in range(20_000)]
    share = np.bincount(found, minlength=partitions) * partitions / 20_000
    assert 0.9 < share.min() <= share.max() < 1.1


@given(st.lists(st.binary(min_size=16, max_size=16)))
def test_a_column_splits_into_what_it_was_joined_from(fingerprints):
    """Fingerprints end to end are the fingerprints."""
    assert split_fingerprints(b"".join(fingerprints)) == fingerprints
