"""A post as users write it: decoding and validation of one Kafka record's value.

JSON and Protobuf are told apart by the first byte: `schemas/public.proto` never uses field 1, so no Protobuf
post starts with a byte that JSON can start with.
"""

import re

import msgspec
from google.protobuf.message import DecodeError

from schemas import public_pb2
from schemas.errors import Reject

ID_BYTES_MAX = 256
REASONS = ("no_value", "malformed", "not_utf8", "no_id", "id_too_long", "no_text", "text_too_long")
"""Why a record is rejected: the `manyray-reason` header and the label of the metric."""


class Post(msgspec.Struct, frozen=True):
    """One post: `id` names it (1 to 256 bytes of UTF-8), `text` is its content."""

    id: str
    text: str


_decode_json = msgspec.json.Decoder(Post).decode
_PROTOBUF_FIRST_BYTES = frozenset(b"\x12\x1a")  # the tags of `id` and `text`
_MISSING = re.compile(r"missing required field `(id|text)`|- at `\$\.(id|text)`")


def decode_post(value: bytes | None, text_bytes_max: int) -> Post:
    """Decode and validate a record's value; unknown fields are ignored.

    Raises:
        Reject: the record is bad; `reason` is one of `REASONS`.
    """
    if not value:
        raise Reject("no_value", "the record has no value; a post is JSON or Protobuf with an id and a text")
    return check_post(_decode_protobuf(value) if is_protobuf(value) else _decode_json_or_reject(value), text_bytes_max)


def decode_deletion(key: bytes | None) -> str:
    """The id of the post that a record without a value deletes: its key.

    Raises:
        Reject: the key is no id; `reason` is one of `REASONS`.
    """
    if not key:
        raise Reject("no_value", "the record has neither a value nor a key: to delete a post its id is the key")
    if len(key) > ID_BYTES_MAX:
        raise Reject("id_too_long", f"id has {len(key)} bytes, the most is {ID_BYTES_MAX}")
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise Reject("not_utf8", f"byte {error.start} of the key is not UTF-8: {error.reason}") from None


def is_protobuf(value: bytes) -> bool:
    """Whether a value, which is not empty, is to be read as Protobuf and not as JSON."""
    return value[0] in _PROTOBUF_FIRST_BYTES


def check_post(post: Post, text_bytes_max: int) -> Post:
    """Return a post that may be embedded.

    Raises:
        Reject: its id or its text is empty or too long.
    """
    if not post.id:
        raise Reject("no_id", "id is empty")
    if not post.text:
        raise Reject("no_text", "text is empty")
    # A character has 1 to 4 bytes: most posts are decided without encoding them.
    if len(post.id) * 4 > ID_BYTES_MAX and len(post.id.encode()) > ID_BYTES_MAX:
        raise Reject("id_too_long", f"id has {len(post.id.encode())} bytes, the most is {ID_BYTES_MAX}")
    if len(post.text) * 4 > text_bytes_max and len(post.text.encode()) > text_bytes_max:
        size = len(post.text.encode())
        raise Reject("text_too_long", f"text has {size} bytes, the most is text_bytes_max = {text_bytes_max}")
    return post


def encode_post(post: Post) -> bytes:
    """The JSON that `decode_post` reads."""
    return msgspec.json.encode(post)


def _decode_json_or_reject(value: bytes) -> Post:
    try:
        return _decode_json(value)
    except UnicodeDecodeError as error:
        raise Reject("not_utf8", f"byte {error.start} of a string is not UTF-8: {error.reason}") from None
    except msgspec.ValidationError as error:
        raise Reject(_missing_field(str(error)), str(error)) from None
    except msgspec.DecodeError as error:
        raise Reject("malformed", str(error)) from None
    except RecursionError:
        raise Reject("malformed", "nested too deeply") from None


def _missing_field(message: str) -> str:
    """`no_id`, `no_text` or `malformed`, from a message that names types and fields, never values."""
    found = _MISSING.search(message)
    return f"no_{found[1] or found[2]}" if found else "malformed"


def _decode_protobuf(value: bytes) -> Post:
    try:
        message = public_pb2.Post.FromString(value)
    except DecodeError as error:
        # upb says "invalid UTF-8" in this very error, and gives no class of its own to it.
        reason = "not_utf8" if "utf-8" in str(error).lower() else "malformed"
        raise Reject(reason, "not a Protobuf manyray.Post") from None
    return Post(message.id, message.text)
