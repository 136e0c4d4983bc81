"""Files of posts as what a replay reads: each file is a partition, and a row's number, from 0, its offset."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import cast

import msgspec

from manyray.reading import STDIN, SUFFIXES, Format, PostFile, open_posts
from schemas.errors import Fatal
from streams import clock
from streams.jobs import Files, Range
from streams.ranges import Read

FILES_MAX = 1_000
"""Of a job: each is a line of chunks in dedup's checkpoints."""
READ_BYTES_MAX = 8 * 2**20
"""Of rows that are read at once, beyond the last one."""
PREFIX = "file:"
"""Before a file's name where a topic's stands: no topic has a colon."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A row as `streams.ingest` takes it: what of Kafka's `Message` it asks for."""

    name: str
    number: int
    row: int
    post_id: str
    data: bytes
    """The row as JSON, with the post's id and text: all that it has, for a filter, and for who reads it in `rejected`.
    """
    read_ms: int

    def topic(self) -> str:
        """The name of the job's files."""
        return self.name

    def partition(self) -> int:
        """The file's number."""
        return self.number

    def offset(self) -> int:
        """The row's number, from 0."""
        return self.row

    def value(self) -> bytes:
        """The post, and its row's other fields, as JSON."""
        return self.data

    def key(self) -> bytes:
        """The post's id."""
        return self.post_id.encode()

    def headers(self) -> list[tuple[str, bytes]]:
        """None."""
        return []

    def timestamp(self) -> tuple[int, int]:
        """Its kind, and when the file was opened."""
        return 1, self.read_ms


def is_path(source: str) -> bool:
    """Whether a replay's source is of files: it has a slash, or a suffix of theirs. Else it is a topic."""
    return source == STDIN or "/" in source or Path(source).suffix.lower() in (*SUFFIXES, ".txt")


def find_files(source: str, layout: Format | None, id_field: str | None, text_field: str) -> Files:
    """A file, or those of a folder that hold posts by their suffix, in the order of their names.

    Raises:
        Fatal: there are none, or they are not files.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES)
        if not found:
            raise Fatal(f"{path} holds no file of posts: those whose name ends in {', '.join(SUFFIXES)}")
    else:
        found = [path]
    for one in found:
        if not one.is_file():
            raise Fatal(f"{one} is no file that can be read again where a replay goes on: save it as one")
    if len(found) > FILES_MAX:
        raise Fatal(f"{path} holds {len(found)} files, and a replay has {FILES_MAX} at most: replay some after others")
    paths = tuple(str(one.resolve()) for one in found)
    return Files(paths, tuple(one.stat().st_size for one in found), layout, id_field, text_field)


def count_rows(files: Files) -> tuple[Range, ...]:
    """Ranges of all files, which are read for it.

    Raises:
        Fatal: one cannot be read, or has a row that is no post.
    """
    ranges: list[Range] = []
    for number in range(len(files.paths)):
        with ExitStack() as opened:
            ranges.append(Range(number, 0, sum(1 for _ in _open(files, number, opened))))
    return tuple(each for each in ranges if each.end)


class FileRanges:
    """Files, one after another: the rows of ranges, of which a file may have several, in their order."""

    def __init__(self, name: str, files: Files, ranges: Sequence[Range]) -> None:
        self._name, self._files, self._ranges = name, files, ranges
        self._next: dict[int, int] = {}
        self._records: Iterator[FileRecord] = iter(())
        self._opened = ExitStack()

    def go_to(self, next_offsets: Mapping[int, int]) -> None:
        """As `Ranges.go_to`; what is before is read and passed over.

        Raises:
            Fatal: a file is gone, or has changed since the job began.
        """
        for path, size_bytes in zip(self._files.paths, self._files.sizes_bytes, strict=True):
            if not Path(path).is_file() or Path(path).stat().st_size != size_bytes:
                raise Fatal(f"{path} is not as it was when the job began: put it back, or cancel the job")
        self._next = dict(next_offsets)
        self._opened.close()
        self._records = self._read()

    def read(self, records_max: int) -> Read:
        """As `Ranges.read`.

        Raises:
            Fatal: a file has a row that is no post, or fewer than when the job began.
        """
        records: list[FileRecord] = []
        size_bytes = 0
        for record in islice(self._records, records_max):
            records.append(record)
            self._next[record.number] = record.row + 1
            size_bytes += len(record.data)
            if size_bytes > READ_BYTES_MAX:
                break
        if not records:
            self._check_ends()
        return Read(records, dict(self._next))

    def close(self) -> None:
        """As `Ranges.close`."""
        self._opened.close()

    def _check_ends(self) -> None:
        for each in self._ranges:
            if self._next[each.partition] < each.end:
                path = self._files.paths[each.partition]
                raise Fatal(f"{path} has fewer rows than when the job began: put it back, or cancel the job")

    def _read(self) -> Iterator[FileRecord]:
        for number, its in groupby(self._ranges, key=lambda one: one.partition):
            ranges = [one for one in its if one.end > self._next[number]]
            if not ranges:
                continue
            posts, at = _open(self._files, number, self._opened), 0
            rows, now_ms = iter(posts), clock.now_ms()
            for each in ranges:
                start = max(each.start, self._next[number])
                for row, post in enumerate(islice(rows, start - at, each.end - at), start):
                    data = msgspec.json.encode({**posts.row, "id": post.id, "text": post.text}, enc_hook=str)
                    yield FileRecord(self._name, number, row, post.id, data, now_ms)
                at = each.end
            self._opened.close()


def _open(files: Files, number: int, opened: ExitStack) -> PostFile:
    layout = cast(Format | None, files.layout)
    file = open_posts(files.paths[number], layout, files.id_field, files.text_field, all_fields=True)
    posts, _ = opened.enter_context(file)
    return posts
