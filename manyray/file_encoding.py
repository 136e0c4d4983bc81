"""`manyray encode-file`: the engine without Kafka, from a file of posts to a file of vectors."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from encoders.encoder import EncodedBatch
from encoders.engine import Engine
from encoders.load import load_encoder, warm_up
from manyray.progress import LOG_EVERY_S, show_progress
from manyray.reading import Format, open_posts
from manyray.segments import Rejection, Segment, Segments, Stored, digest_of
from manyray.vector_files import write_file, writer_of
from schemas.content import normalise
from schemas.errors import Fatal, Reject
from schemas.post import Post, check_post
from streams import clock
from streams.settings import Settings
from streams.submitted import DETAILS
from streams.version import model_of

_log = logging.getLogger("manyray.encode-file")

SEGMENT_POSTS = 4_096
"""A window, and what an end at the wrong time costs: some seconds of a CPU. Many are sorted better than few."""
SEGMENT_BYTES = 16 * 2**20
"""Of texts: a segment of long ones is shorter, so that memory is bounded."""


@dataclass(frozen=True, slots=True)
class _Work:
    """A segment under way: each post's place among so many distinct contents, or why it has none."""

    posts: list[Post]
    places: list[int]
    contents: int
    rejected: dict[int, Reject]
    encoded: Future[EncodedBatch]


def encode_file(
    settings: Settings,
    source: str,
    target: Path,
    *,
    layout: Format | None,
    id_field: str | None,
    text_field: str,
) -> str:
    """Write the vectors of a file's posts, or those of stdin for `-`, and return what sums it up.

    What is done is kept in `<target>.part`, so that a run that was ended is gone on with by the same command. Posts
    that cannot be embedded are listed in `<target>.rejected.jsonl`.

    Raises:
        ManyrayError: as `open_posts` and `load_encoder`; or `target` is there, of no known kind, or cannot be written.
    """
    writer_of(target)
    if target.exists():
        raise Fatal(f"{target} is there already: remove it, or name another")
    encoder = load_encoder(model_of(settings), device=settings.device)
    batch_tokens = warm_up(encoder, settings.batch_tokens or encoder.batch_tokens)
    form, version = encoder.spec.form, encoder.spec.version
    made_with = {"version": version, "text_bytes_max": settings.text_bytes_max, "text_field": text_field}
    with (
        open_posts(source, layout, id_field, text_field) as (posts, size),
        show_progress("encode", posts, size) as on_progress,
        Engine(encoder, batch_tokens) as engine,
    ):
        segments = Segments(target.with_name(target.name + ".part"), made_with)
        began_s = told_s = clock.perf_s()
        new = 0
        for done, added in _Run(settings, engine, segments).go(iter(posts)):
            on_progress(done)
            new += added
            if clock.perf_s() - told_s >= LOG_EVERY_S:
                told_s = clock.perf_s()
                _log.info("%d posts, %.0f posts/s", done, new / (told_s - began_s))
    took_s = clock.perf_s() - began_s
    none = form.pack(np.empty((0, encoder.dims), np.float32))
    about = {"version": version, "model": settings.model, "output": form.output, "scale": str(form.scale)}
    write_file(target, segments, none, about)
    total, distinct, rejected = _write_rejected(target, segments)
    segments.remove()
    parts = [f"{distinct:,} computed", f"{rejected:,} rejected"]
    if new < total:
        parts.append(f"{total - new:,} kept from before")
    return (
        f"encoded {total:,} posts ({', '.join(parts)}) into {target}: {form.output}, {encoder.dims} dims, "
        f"version {version}; {new:,} posts in {took_s:.1f} s ({new / max(took_s, 1e-3):,.0f} posts/s)"
    )


class _Run:
    """Segments, one after another, each written while the next is computed and the one after it tokenised."""

    def __init__(self, settings: Settings, engine: Engine, segments: Segments) -> None:
        self._settings, self._engine, self._segments = settings, engine, segments

    def go(self, posts: Iterator[Post]) -> Iterator[tuple[int, int]]:
        """How many posts are done, and how many of these were computed now, each time a segment is."""
        groups = _groups(posts)
        done = 0
        for number in range(self._segments.count):
            some = next(groups, None)
            if some is None:
                raise Fatal(f"there are fewer posts than {self._segments.folder} has vectors of: remove it")
            self._segments.check(number, [post.text for post in some])
            done += len(some)
            yield done, 0
        last: _Work | None = None
        try:
            for some in groups:
                work = self._begin(some)
                if last is not None:
                    self._keep(last)
                    done += len(last.posts)
                    yield done, len(last.posts)
                last = work
        except Fatal:  # a line that is no post stops the reading, and not what was read before
            if last is not None:
                self._keep(last)
            raise
        if last is not None:
            self._keep(last)
            yield done + len(last.posts), len(last.posts)

    def _begin(self, posts: list[Post]) -> _Work:
        """Give the engine each distinct content of some posts once."""
        known, places, rejected = dict[str, int](), list[int](), dict[int, Reject]()
        for index, post in enumerate(posts):
            try:
                content = normalise(check_post(post, self._settings.text_bytes_max).text)
            except (Reject, UnicodeEncodeError) as error:
                rejected[index] = error if isinstance(error, Reject) else Reject("not_utf8", "a lone surrogate")
                places.append(-1)
                continue
            places.append(known.setdefault(content, len(known)))
        return _Work(posts, places, len(known), rejected, self._engine.submit(list(known)))

    def _keep(self, work: _Work) -> None:
        """Wait for the vectors of a segment, and write them."""
        batch = work.encoded.result()
        vectors, failed = batch.vectors, batch.failed
        rejected = dict(work.rejected)
        for index, place in enumerate(work.places):
            if place in failed:
                rejected[index] = Reject(failed[place], DETAILS[failed[place]])
        stored: Stored = self._engine.encoder.spec.form.pack(np.nan_to_num(vectors) if failed else vectors)
        rows = stored[work.places] if len(stored) else np.zeros((len(work.places), stored.shape[1]), stored.dtype)
        rows[list(rejected)] = np.nan if stored.dtype.kind == "f" else 0
        self._segments.add(
            Segment(
                [post.id for post in work.posts],
                [Rejection(index, cause.reason, cause.detail) for index, cause in sorted(rejected.items())],
                digest_of([post.text for post in work.posts]),
                work.contents - len(failed),
            ),
            rows,
        )


def _groups(posts: Iterator[Post]) -> Iterator[list[Post]]:
    """The posts of each segment: the same ones whenever the file is read."""
    group: list[Post] = []
    size = 0
    for post in posts:
        group.append(post)
        size += len(post.text)
        if len(group) >= SEGMENT_POSTS or size >= SEGMENT_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _write_rejected(target: Path, segments: Segments) -> tuple[int, int, int]:
    """List the posts without a vector; how many posts, contents computed and posts rejected there are."""
    total = distinct = rejected = 0
    path = target.with_name(target.name + ".rejected.jsonl")
    path.unlink(missing_ok=True)
    for number in range(segments.count):
        segment = segments.read(number)
        if segment.rejected:
            with path.open("ab") as file:
                for one in segment.rejected:
                    line = {"row": total + one.index, "id": segment.ids[one.index], "reason": one.reason}
                    file.write(msgspec.json.encode({**line, "detail": one.detail}) + b"\n")
        total, distinct, rejected = (
            total + len(segment.ids),
            distinct + segment.distinct,
            rejected + len(segment.rejected),
        )
    return total, distinct, rejected
