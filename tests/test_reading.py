"""Posts from files: what a line, an object or a row becomes, and how a bad one is told."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyray.reading import LINE_BYTES_MAX, PostFile, open_posts
from schemas.errors import Fatal
from schemas.post import Post

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))


def read(data: bytes, layout: str, **fields: str) -> list[Post]:
    """The posts of a file with these bytes."""
    return list(PostFile("posts", io.BytesIO(data), layout, **fields))  # type: ignore[arg-type]


def test_only_a_newline_ends_a_line():
    """Characters that Python, Unicode or old machines take for line ends stay inside a post."""
    odd = "a\u2028b\u2029c\x0bd\x0ce\x1cf\x85g\rh"
    assert read(f"{odd}\nsecond".encode(), "lines") == [Post("posts-1", odd), Post("posts-2", "second")]


def test_ids_of_plain_lines_are_file_and_line_number():
    """Blank lines make no post and are counted, so an id leads to its line; a BOM and Windows line ends go."""
    posts = read(b"\xef\xbb\xbfone\r\n\n\r\ntwo\n", "lines")
    assert posts == [Post("posts-1", "one"), Post("posts-4", "two")]


@given(TEXTS)
def test_jsonl_gives_back_what_was_written(texts: list[str]):
    """Every text that JSON can hold comes back, however it is escaped."""
    rows = [{"key": number, "body": text, "other": [1]} for number, text in enumerate(texts)]
    for ascii_only in (True, False):
        data = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows).encode()
        posts = read(data, "jsonl", id_field="key", text_field="body")
        assert posts == [Post(str(number), text) for number, text in enumerate(texts)]


@given(TEXTS, st.sampled_from(["csv", "tsv"]))
def test_csv_gives_back_what_was_written(texts: list[str], layout: str):
    """Every text comes back, with delimiters, quotes and newlines in it."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter="\t" if layout == "tsv" else ",", quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "extra", "id"])
    writer.writerows([[text, "", f"p{number}"] for number, text in enumerate(texts)])
    posts = read(file.getvalue().encode(), layout)
    assert posts == [Post(f"p{number}", text) for number, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("layout", "data", "line", "remedy"),
    [
        ("jsonl", b'{"id": "1", "text": "x"}\nnot json\n', 2, "--format lines"),
        ("jsonl", b'["1", "x"]\n', 1, "--format lines"),
        ("jsonl", b'{"id": "1", "text": "x"}\n{"id": "2"}', 2, "--text-field"),
        ("jsonl", b'{"text": "x"}', 1, "--id-field"),
        ("jsonl", b'{"id": true, "text": "x"}', 1, "--id-field"),
        ("csv", b"key,text\n1,x\n", 1, "--id-field"),
        ("csv", b"id,body\n1,x\n", 1, "--text-field"),
        ("csv", b"", 1, "--id-field"),
        ("csv", b'id,text\n1,x\n2,"a\nb"\n3,y,z\n', 5, "columns"),
        ("csv", b'id,text\n1,"x"y\n', 2, "not CSV"),
        ("lines", b"good\n\xff\xfe\n", 2, "iconv"),
        ("lines", b"good\n" + b"x" * (LINE_BYTES_MAX + 1), 2, "longer"),
    ],
)
def test_a_bad_row_is_named_with_its_line(layout: str, data: bytes, line: int, remedy: str):
    """Nothing is skipped unseen: the error names file, line and remedy, and not the text."""
    with pytest.raises(Fatal, match=rf"^posts:{line}: .*{remedy}"):
        read(data, layout)


class Endless(io.RawIOBase):
    """A file without an end, that counts what is read of it."""

    bytes_given = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer) -> int:
        """Fill the buffer with rows."""
        line = b'"1","x"\n' * (len(buffer) // 8)
        buffer[: len(line)] = line
        self.bytes_given += len(line)
        return len(line)


@pytest.mark.parametrize("layout", ["lines", "csv"])
def test_a_file_is_read_as_far_as_posts_are_taken(layout: str):
    """A file of any size is a stream: the first posts cost the first bytes."""
    endless = Endless()
    fields = {"id_field": "1", "text_field": "x"} if layout == "csv" else {}
    file = PostFile("posts", io.BufferedReader(endless), layout, **fields)  # type: ignore[arg-type]
    for _, post in zip(range(1000), file, strict=False):
        assert post.text
    assert file.bytes_read <= 8 * 1002
    assert endless.bytes_given < 100_000


def test_the_suffix_says_the_format(tmp_path: Path):
    """.jsonl, .ndjson, .csv and .tsv are known, any other file is plain lines, and a format that is given wins."""
    for name, data in {
        "a.jsonl": b'{"id":"1","text":"x"}',
        "a.NDJSON": b'{"id":"1","text":"x"}',
        "a.csv": b"id,text\n1,x",
        "a.tsv": b"id\ttext\n1\tx",
    }.items():
        (tmp_path / name).write_bytes(data)
        with open_posts(str(tmp_path / name)) as (posts, size):
            assert list(posts) == [Post("1", "x")]
            assert posts.bytes_read == size == len(data)
        with open_posts(str(tmp_path / name), "lines") as (posts, _):
            assert next(iter(posts)) == Post("a-1", data.decode().split("\n")[0])


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path):
    """A wrong path is one clear line."""
    with pytest.raises(Fatal, match="cannot be read: No such file"), open_posts(str(tmp_path / "absent")):
        pass


def test_a_line_is_named_with_its_whole_file_name(tmp_path):
    """What is wrong can be found; ids are of the name without its suffix, as ever."""
    file = tmp_path / "mine.v2.txt"
    file.write_bytes(b"good\n\xff\n")
    with open_posts(str(file)) as (posts, _):
        found = iter(posts)
        assert next(found).id == "mine.v2-1"
        with pytest.raises(Fatal, match=r"^mine\.v2\.txt:2: byte 0 is not UTF-8"):
            next(found)
