"""`manyray export`: a range of a ray's embeddings into a folder of Parquet files, which may stop at any time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from manyray.embedding_rows import Batch, batch_of, commonest_kind, rows_of, write_rows
from manyray.export_folder import Counts, Export, claimed, file_name, find_export, keep_export
from manyray.progress import show_share
from manyray.rays import find_embeddings_topic
from schemas.errors import Fatal
from streams import clock
from streams.attempts import with_retries
from streams.jobs import Range
from streams.offsets import find_ranges, parse_bound
from streams.ranges import Ranges, Read, TopicRanges
from streams.settings import Settings

FILE_BYTES = 512 * 2**20
"""Of a file's rows before they are encoded: one of wide vectors has fewer."""
READ_RECORDS = 1_000


def export_ray(
    settings: Settings, ray: str, folder: Path, *, start: str, end: str, file_rows: int, stop: threading.Event
) -> tuple[str, bool]:
    """Write the embeddings of a range until all are, or `stop` is set; the line that sums it up, and whether all are.

    The range is that of the moment when the folder was begun. Each file is of one partition, in its order, and has at
    most so many rows. Who asks for the same again goes on behind the last file.

    Raises:
        ManyrayError: the ray, a bound or the folder is not to be had, or it cannot go on.
    """
    topic = find_embeddings_topic(settings, ray)
    try:
        with claimed(folder):
            export = find_export(folder, topic, start, end)
            if export is None:
                export = _begun(settings, topic, start, end)
                keep_export(folder, export)
            began_s = clock.perf_s()
            with show_share(export.offsets) as show:
                run = _Run(settings, folder, export, file_rows=file_rows, stop=stop, show=show)
                run.go()
            return _summary(folder, export, run.export, clock.perf_s() - began_s), not run.export.offsets_left
    except OSError as error:
        why = error.strerror or error
        raise Fatal(f"{folder} cannot be written ({why}): what is done is kept, run it again") from None


class _Run:
    """One process's part of an export, whose `export` says how far it is. Used by one thread."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        export: Export,
        *,
        file_rows: int,
        stop: threading.Event,
        show: Callable[[int, str], None],
    ) -> None:
        self.export = export
        self._settings, self._folder, self._file_rows, self._stop, self._show = settings, folder, file_rows, stop, show

    def go(self) -> None:
        """Export what is left, one partition after another, unless told to stop."""
        for each in self.export.ranges:
            if self._is_left(each):
                with closing(TopicRanges(self._settings, self.export.topic, (each,))) as source:
                    self._go_through(source, each)

    def _go_through(self, source: Ranges, one: Range) -> None:
        def go_to_next() -> None:
            source.go_to({one.partition: self.export.next_offsets[one.partition]})

        go_to_next()
        while self._is_left(one):
            self.export = with_retries(partial(self._write_file, source, one), self._stop, go_to_next)
            keep_export(self._folder, self.export)

    def _is_left(self, one: Range) -> bool:
        return self.export.next_offsets[one.partition] < one.end and not self._stop.is_set()

    def _write_file(self, source: Ranges, one: Range) -> Export:
        """The next file of a partition: a shorter one if told to stop, and none of a stretch without embeddings."""
        export = self.export

        def batches() -> Iterator[Batch]:
            nonlocal export
            rows = size = 0
            while rows < self._file_rows and size < FILE_BYTES and export.next_offsets[one.partition] < one.end:
                if self._stop.is_set():
                    return
                read = source.read(min(READ_RECORDS, self._file_rows - rows))
                export, batch = taken(export, one.partition, read)
                self._show(export.offsets - export.offsets_left, f"{export.counts.embeddings:,} embeddings")
                if batch is not None:
                    rows, size = rows + batch.num_rows, size + batch.nbytes
                    yield batch

        name = file_name(one.partition, self.export.next_offsets[one.partition])
        if not write_rows(self._folder / name, batches()):
            return export
        rows = export.counts.embeddings - self.export.counts.embeddings
        return replace(export, files={**export.files, name: rows})


def taken(export: Export, partition: int, read: Read) -> tuple[Export, Batch | None]:
    """How far an export is after what was read of a partition, and the rows of it, if there are any."""
    values = [message.value() for message in read.records]
    there = [value for value in values if value is not None]
    _, ray, version = export.topic.split(".", 2)
    kind = export.kind or commonest_kind(there, ray, version)
    rows = rows_of(there, kind) if kind else []
    counts = Counts(len(rows), len(values) - len(there), len(there) - len(rows), read.gone)
    next_offsets = {**export.next_offsets, partition: read.next_offsets[partition]}
    after = replace(export, kind=kind, next_offsets=next_offsets, counts=export.counts + counts)
    return after, batch_of(rows, kind) if kind and rows else None


def _begun(settings: Settings, topic: str, start: str, end: str) -> Export:
    ranges = find_ranges(settings, topic, parse_bound(start, "--from"), parse_bound(end, "--to"))
    if not ranges:
        raise Fatal(f"topic {topic} holds no record from {start} to {end}: choose another --from and --to")
    return Export(topic, start, end, clock.now_ms(), ranges, {each.partition: each.start for each in ranges})


def _summary(folder: Path, before: Export, export: Export, took_s: float) -> str:
    """What became of an export, in a line."""
    counts, kind = export.counts, export.kind
    kept = before.counts.embeddings
    new = counts.embeddings - kept
    told = [f"{len(export.files):,} files"]
    if kind is not None:
        told += [kind.output, f"{kind.dims} dims"]
    told += [
        f"{count:,} {what}"
        for what, count in (
            ("kept from before", kept),
            ("tombstones passed over", counts.tombstones),
            ("records left out, as they are no embeddings of this version", counts.strange),
            ("offsets gone, as retention removed them before they were read", counts.gone),
        )
        if count
    ]
    asked = datetime.fromtimestamp(export.asked_ms / 1000, UTC)
    pace = f"; {new:,} embeddings in {took_s:.1f} s ({new / max(took_s, 1e-3):,.0f}/s)" if new else ""
    share = 1 - export.offsets_left / export.offsets
    end = f"; {share:.1%} done, the same command goes on" if export.offsets_left else ""
    return (
        f"exported {counts.embeddings:,} embeddings of {export.topic}, {export.start} to {export.end} as of "
        f"{asked:%Y-%m-%d %H:%M} UTC, into {folder}: {', '.join(told)}{pace}{end}"
    )
