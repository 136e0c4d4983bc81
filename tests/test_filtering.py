"""Laws of which posts a replay is for."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyray.file_ranges import FileRecord
from schemas.errors import Fatal
from streams.filtering import compile_filter

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda of: st.lists(of, max_size=3))


def is_wanted(expression: str, value: bytes) -> bool:
    """Whether a record with this value is."""
    return compile_filter(expression)(FileRecord("file:x", 0, 0, "", value, 0))


@pytest.mark.parametrize(
    ("expression", "post", "wanted"),
    [
        ("lang == 'de'", {"lang": "de"}, True),
        ("lang == 'de'", {"lang": "en"}, False),
        ("lang == 'de'", {}, False),
        ("contains(text, 'x')", {"text": "axe"}, True),
        ("starts_with(lang, 'd')", {"lang": "de"}, True),
        ("starts_with(lang, 'd')", {"lang": 3}, False),
        ("length(tags) > `1`", {"tags": ["a", "b"]}, True),
        ("length(tags) > `1`", {}, False),
        ("contains(text, lang)", {"text": "a", "lang": None}, False),
        ("likes", {"likes": 0}, True),
        ("tags", {"tags": []}, False),
    ],
)
def test_the_truth_of_the_expression_decides(expression: str, post: dict[str, object], wanted: bool) -> None:
    """As JMESPath has it: 0 is true, what is empty or absent is not; what makes no sense of a post is not."""
    assert is_wanted(expression, json.dumps(post).encode()) is wanted


@given(st.dictionaries(st.sampled_from(["id", "text", "lang", "tags"]), VALUES))
def test_no_post_ends_a_filter(post: dict[str, object]) -> None:
    """Whatever its fields hold."""
    value = json.dumps(post).encode()
    for expression in (
        "contains(text, lang)",
        "length(tags) > `1`",
        "sum(tags) > `1`",
        "lang[0] == text",
        "sort(tags)",
    ):
        assert is_wanted(expression, value) in (True, False)


@given(st.binary())
def test_what_is_no_post_is_left_to_be_rejected(value: bytes) -> None:
    """Neither JSON nor Protobuf: a filter has no say, and no bytes end it."""
    found = is_wanted("nothing == 'here'", value)
    if not found:
        return
    with pytest.raises((ValueError, RecursionError)):
        json.loads(value)


@pytest.mark.parametrize("expression", ["lang ==", "nope(lang)", "[", "length()"])
def test_what_is_no_expression_is_refused(expression: str) -> None:
    """With an example of one that is."""
    with pytest.raises(Fatal, match=r"is no JMESPath expression .*: such as"):
        compile_filter(expression)
