"""Posts from files: plain lines, JSONL, CSV, TSV and Parquet, read as a stream and never as a whole.

What a post holds is not judged here: a post with an empty text is published, and comes out in `rejected` with its
reason. A row from which no post can be made stops the reading, so that nothing is lost unseen.
"""

import csv
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from schemas.errors import Fatal
from schemas.post import Post
from streams import clock

Format = Literal["lines", "jsonl", "csv", "tsv", "parquet"]
STDIN = "-"
LINE_BYTES_MAX = 1_048_576  # no post may be that long; without a limit a binary file would be one line

SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_ROWS_AT_ONCE = 1_024  # of Parquet
_STEM_CHARACTERS_MAX = 50  # so that an id stays below its 256 bytes


class PostFile:
    """The posts of one open file, in order; `bytes_read` says how far it is.

    Plain lines: each line that is not blank is a text, and its id is `<file name without its suffix>-<line number>`,
    the same whenever the file is read (from stdin a new prefix each time). JSONL, CSV and Parquet: `id_field` and
    `text_field` name the fields; where `id_field` is None it is `id`, and a file without one has ids as plain lines
    have, by line or row, but with its suffix.
    """

    def __init__(
        self,
        name: str,
        file: BinaryIO,
        layout: Format,
        id_field: str | None = "id",
        text_field: str = "text",
        *,
        all_fields: bool = False,
    ) -> None:
        """Use `open_posts`."""
        self.name = name
        self.bytes_read = 0
        self.row: dict[Any, Any] = {}
        """The fields of the last row, of Parquet id and text alone unless `all_fields`; none of a plain line."""
        self._all_fields = all_fields
        self._file = file
        self._layout: Format = layout
        self._id_field = id_field
        self._text_field = text_field
        stem = Path(name).stem if layout == "lines" else name
        stem = stem.encode("utf-8", "replace").decode()[:_STEM_CHARACTERS_MAX]
        self._stem = f"stdin-{clock.random_id()[:8]}" if name == STDIN else stem

    def __iter__(self) -> Iterator[Post]:
        """Iterate over the posts, once.

        Raises:
            Fatal: a row that is no post; it names file, line and remedy.
        """
        parse: dict[Format, Callable[[], Iterator[Post]]] = {
            "lines": self._from_lines,
            "jsonl": self._from_jsonl,
            "csv": lambda: self._from_csv(","),
            "tsv": lambda: self._from_csv("\t"),
            "parquet": self._from_parquet,
        }
        return parse[self._layout]()

    def _lines(self) -> Iterator[tuple[int, str]]:
        r"""Numbered lines with their ends; only `\n` ends a line, as posts hold other characters that look like it."""
        number = 0
        while line := self._file.readline(LINE_BYTES_MAX + 1):
            number += 1
            if len(line) > LINE_BYTES_MAX:
                raise self._bad(number, f"the line is longer than {LINE_BYTES_MAX} bytes: is this a text file?")
            self.bytes_read += len(line)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise self._bad(
                    number, f"byte {error.start} is not UTF-8: convert the file, such as with iconv -t UTF-8"
                ) from None
            yield number, text.removeprefix("\ufeff") if number == 1 else text

    def _from_lines(self) -> Iterator[Post]:
        for number, line in self._lines():
            if text := line.removesuffix("\n").removesuffix("\r"):
                yield Post(self._numbered(number), text)

    def _from_jsonl(self) -> Iterator[Post]:
        for number, line in self._lines():
            if not line.strip():
                continue
            try:
                row: object = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise self._bad(number, "not JSON: one object a line is wanted, or --format lines") from None
            if not isinstance(row, dict):
                raise self._bad(number, "not a JSON object with an id and a text; for plain lines --format lines")
            yield self._post(number, row)

    def _from_csv(self, delimiter: str) -> Iterator[Post]:
        csv.field_size_limit(LINE_BYTES_MAX)
        rows = csv.reader((line for _, line in self._lines()), delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
            for field, flag in ((self._id_field, "--id-field"), (self._text_field, "--text-field")):
                if field is not None and field not in header:
                    raise self._bad(1, f"no column {field} among {', '.join(header) or 'none'}: name it with {flag}")
            for row in rows:
                if row and len(row) != len(header):
                    raise self._bad(rows.line_num, f"{len(row)} columns, the header has {len(header)}")
                if row:
                    yield self._post(rows.line_num, dict(zip(header, row, strict=True)))
        except csv.Error as error:
            raise self._bad(rows.line_num, f"not CSV: {error}") from None

    def _from_parquet(self) -> Iterator[Post]:
        from manyray.arrow import arrow, parquet  # noqa: PLC0415 - not everybody has it

        try:
            opened = parquet.ParquetFile(self._file)
            names = opened.schema_arrow.names
            columns = [name for name in (self._id_field or "id", self._text_field) if name in names]
            columns = None if self._all_fields else columns
            rows, number = opened.metadata.num_rows, 0
            size = self._file.seek(0, 2)
            for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield self._post(number, row)
                self.bytes_read = size * number // rows
        except (arrow.ArrowException, OSError) as error:
            raise Fatal(f"{self.name} is not Parquet that can be read: {error}") from None

    def _numbered(self, number: int) -> str:
        """The id of a post that has none, the same whenever the file is read."""
        return f"{self._stem}-{number}"

    def _post(self, number: int, row: dict[Any, Any]) -> Post:
        self.row = row
        id_field = self._id_field or "id"
        if self._id_field is None and id_field not in row:
            row = {**row, id_field: self._numbered(number)}
        post_id, text = row.get(id_field), row.get(self._text_field)
        if isinstance(post_id, int) and not isinstance(post_id, bool):
            post_id = str(post_id)
        for field, value, flag in (
            (id_field, post_id, "--id-field"),
            (self._text_field, text, "--text-field"),
        ):
            if not isinstance(value, str):
                what = "no field" if field not in row else "no text in field"
                raise self._bad(number, f"{what} {field}: correct the line, or name the field with {flag}")
        return Post(str(post_id), str(text))

    def _bad(self, number: int, what: str) -> Fatal:
        where = "stdin" if self.name == STDIN else self.name
        return Fatal(f"{where}:{number}: {what}")


@contextmanager
def open_posts(
    path: str,
    layout: Format | None = None,
    id_field: str | None = "id",
    text_field: str = "text",
    *,
    all_fields: bool = False,
) -> Generator[tuple[PostFile, int | None]]:
    """The posts of a file, or of stdin for `-`, and its size in bytes (None for stdin and pipes).

    The format is `layout`, else what the file name's suffix says (.jsonl, .ndjson, .csv, .tsv, .parquet), else plain
    lines. `all_fields`: as `PostFile.row`.

    Raises:
        Fatal: the file cannot be read.
    """
    if path == STDIN:
        yield PostFile(STDIN, sys.stdin.buffer, layout or "lines", id_field, text_field), None
        return
    file = Path(path)
    layout = layout or SUFFIXES.get(file.suffix.lower(), "lines")
    try:
        opened = file.open("rb")
    except OSError as error:
        raise Fatal(f"{path} cannot be read: {error.strerror}") from None
    with opened:
        size = file.stat().st_size if file.is_file() else None
        yield PostFile(file.name, opened, layout, id_field, text_field, all_fields=all_fields), size
