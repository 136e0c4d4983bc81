"""Which posts of a range a replay is for: a JMESPath expression (https://jmespath.org) over each post's JSON."""

from collections.abc import Callable
from contextlib import suppress

import jmespath
import msgspec
from google.protobuf.message import DecodeError
from jmespath.exceptions import JMESPathError, JMESPathTypeError

from schemas.errors import Fatal
from schemas.post import is_protobuf
from schemas.public_pb2 import Post
from streams.rejected import PostRecord

Wanted = Callable[[PostRecord], bool]


def compile_filter(expression: str) -> Wanted:
    """What says whether a record's post is wanted: by the truth, as JMESPath has it, of the expression over its JSON.

    Of a post in Protobuf the JSON has `id` and `text`. What is neither JSON nor Protobuf is wanted, as it is to be
    rejected, and so is what deletes a post; a post for which the expression makes no sense, as `contains(lang, 'e')`
    where `lang` is a number, is not.

    Raises:
        Fatal: it is no expression; or it calls a function that there is not.
    """
    try:
        search = jmespath.compile(expression).search
        with suppress(JMESPathTypeError, TypeError):  # of fields that a post may have
            search({"id": "", "text": ""})
    except JMESPathError as error:
        told = " ".join(str(error).split())
        raise Fatal(f"--filter {expression} is no JMESPath expression ({told}): such as \"lang == 'en'\"") from None

    def is_wanted(message: PostRecord) -> bool:
        try:
            post = _fields(message.value() or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, DecodeError, RecursionError):
            return True
        try:
            return not _is_false(search(post))
        except (JMESPathError, TypeError, ArithmeticError):
            return False

    return is_wanted


def _fields(value: bytes) -> object:
    if value and is_protobuf(value):
        post = Post.FromString(value)
        return {"id": post.id, "text": post.text}
    return msgspec.json.decode(value)


def _is_false(found: object) -> bool:
    """JMESPath: false, null, and what is empty; 0 is true."""
    return found is False or found is None or found in ("", [], {})
