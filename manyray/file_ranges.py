"""Files of posts as what a replay reads: each file is a partition, and a row's number its offset."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from manyray.reading import SUFFIXES, Format, open_posts
from schemas.errors import Fatal
from schemas.post import Post, encode_post
from streams import clock
from streams.jobs import Range
from streams.ranges import Read


@dataclass(frozen=True, slots=True)
class Rows:
    """How a file's rows are read: as `open_posts` takes it."""

    layout: Format | None
    id_field: str
    text_field: str


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A row as `streams.ingest` takes it: what of Kafka's `Message` it asks for."""

    name: str
    number: int
    row: int
    post: Post
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
        """The post as JSON."""
        return encode_post(self.post)

    def key(self) -> bytes:
        """The post's id."""
        return self.post.id.encode()

    def headers(self) -> list[tuple[str, bytes]]:
        """None."""
        return []

    def timestamp(self) -> tuple[int, int]:
        """Its kind, and when it was read."""
        return 1, self.read_ms


def files_of(path: Path) -> list[Path]:
    """A file, or those of a folder that hold posts by their suffix, by name.

    Raises:
        Fatal: there are none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES)
    if not found:
        raise Fatal(f"{path} holds no file of posts: those whose name ends in {', '.join(SUFFIXES)}")
    return found


def count_rows(files: list[Path], rows: Rows) -> tuple[Range, ...]:
    """Ranges of all files, which are read for it.

    Raises:
        Fatal: one cannot be read, or has a row that is no post.
    """
    ranges: list[Range] = []
    for number, file in enumerate(files):
        with open_posts(str(file), rows.layout, rows.id_field, rows.text_field) as (posts, _):
            ranges.append(Range(number, 0, sum(1 for _ in posts)))
    return tuple(each for each in ranges if each.end)


class FileRanges:
    """Files, one after another."""

    def __init__(self, name: str, files: list[Path], ranges: tuple[Range, ...], rows: Rows) -> None:
        self._name, self._files, self._ranges, self._rows = name, files, ranges, rows
        self._next: dict[int, int] = {}
        self._records: Iterator[FileRecord] = iter(())
        self._opened = ExitStack()

    def go_to(self, next_offsets: Mapping[int, int]) -> None:
        """As `Ranges.go_to`; what is before is read and passed over."""
        self._next = dict(next_offsets)
        self._opened.close()
        self._records = self._read()

    def read(self, records_max: int) -> Read:
        """As `Ranges.read`.

        Raises:
            Fatal: a file is gone or changed, or has a row that is no post.
        """
        records = list(islice(self._records, records_max))
        for record in records:
            self._next[record.number] = record.row + 1
        if len(records) < records_max:
            self._check_ends()
        return Read(records, dict(self._next))

    def close(self) -> None:
        """As `Ranges.close`."""
        self._opened.close()

    def _read(self) -> Iterator[FileRecord]:
        for each in self._ranges:
            rows, start = self._rows, self._next[each.partition]
            if start >= each.end:
                continue
            opened = open_posts(str(self._files[each.partition]), rows.layout, rows.id_field, rows.text_field)
            posts, _ = self._opened.enter_context(opened)
            now_ms = clock.now_ms()
            for row, post in enumerate(islice(posts, each.end)):
                if row >= start:
                    yield FileRecord(self._name, each.partition, row, post, now_ms)
            self._opened.close()

    def _check_ends(self) -> None:
        for each in self._ranges:
            if self._next[each.partition] < each.end:
                raise Fatal(
                    f"{self._files[each.partition]} has fewer posts than when the job began ({each.end:,}): put it "
                    "back as it was, or cancel the job"
                )
