"""What makes two posts the same: normalised content, its fingerprint, and the partition that owns it."""

import hashlib
import unicodedata
from collections.abc import Callable

import numpy as np

FINGERPRINT_BYTES = 16
_PLACE_BYTES = 4


def normalise(text: str) -> str:
    r"""The content that is fingerprinted and encoded: Unicode NFC, line ends as `\n`; the meaning is untouched."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def hasher(salt: str = "") -> Callable[[bytes], bytes]:
    """A function from content to its 16-byte hash, the same in every version: BLAKE2b (RFC 7693) keyed with the salt.

    The key makes hashes of one tenant useless to another.
    """
    key = hashlib.blake2b(f"salt:{salt}".encode(), digest_size=32).digest()
    keyed = hashlib.blake2b(key=key, digest_size=FINGERPRINT_BYTES)

    def hash_of(content: bytes) -> bytes:
        state = keyed.copy()  # keying once and copying costs 40 % less than keying for every content
        state.update(content)
        return state.digest()

    return hash_of


def fingerprints_in(version: str) -> Callable[[bytes], bytes]:
    """A function from contents' hashes, end to end, to their fingerprints in a version, likewise.

    A fingerprint is the hash XOR the version's own digest, but for the first 4 bytes, which place it: fingerprints are
    equal where hashes are, no two versions share any but by chance (2^-96), and a content has its place in all.
    """
    own = bytes(_PLACE_BYTES) + hashlib.blake2b(version.encode(), digest_size=FINGERPRINT_BYTES - _PLACE_BYTES).digest()
    mask = np.frombuffer(own, np.uint8)

    def fingerprints(hashes: bytes) -> bytes:
        return (np.frombuffer(hashes, np.uint8).reshape(-1, FINGERPRINT_BYTES) ^ mask).tobytes()

    return fingerprints


def fingerprinter(version: str, salt: str = "") -> Callable[[bytes], bytes]:
    """A function from content to its 16-byte fingerprint in a version."""
    hash_of, fingerprints = hasher(salt), fingerprints_in(version)
    return lambda content: fingerprints(hash_of(content))


def is_in_share(hash_of_content: bytes, share: float) -> bool:
    """Whether a content is among a share, in [0, 1], of all: the same ones always, and more for a larger one."""
    return int.from_bytes(hash_of_content[_PLACE_BYTES : 2 * _PLACE_BYTES], "little") < share * 2**32


def partition_of(fingerprint: bytes, partitions: int) -> int:
    """The partition, from 0 to `partitions` - 1, that owns a fingerprint, and its hash, in every internal topic."""
    return int.from_bytes(fingerprint[:_PLACE_BYTES], "little") % partitions


def split_fingerprints(blob: bytes) -> list[bytes]:
    """The fingerprints of a column that holds them end to end."""
    return [blob[start : start + FINGERPRINT_BYTES] for start in range(0, len(blob), FINGERPRINT_BYTES)]
