"""`manyray publish`: a file's posts, with a progress bar for people who look at it."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from manyray.client import Client
from manyray.reading import Format, PostFile, open_posts
from streams import clock
from streams.settings import Settings


def publish_file(
    settings: Settings, path: str, topic: str | None, *, layout: Format | None, id_field: str, text_field: str
) -> str:
    """Publish the posts of a file, or of stdin for `-`, and return the line that sums it up.

    Raises:
        ManyrayError: as `open_posts` and `Client.publish`.
    """
    with Client(settings) as client, open_posts(path, layout, id_field, text_field) as (posts, size):
        began_s = clock.perf_s()
        with _bar(posts, size) as on_progress:
            count = client.publish(posts, topic, on_progress=on_progress)
        took_s = clock.perf_s() - began_s
    where = topic or settings.posts_topics[0]
    rate = f"{count / max(took_s, 1e-3):,.0f} posts/s"
    return f"published {count:,} post{'' if count == 1 else 's'} to {where} in {took_s:.1f} s ({rate})"


@contextmanager
def _bar(posts: PostFile, size: int | None) -> Generator[Callable[[int], None]]:
    """A progress bar on stderr, by bytes where the size is known; nothing where nobody looks."""
    console = Console(stderr=True)
    if not (console.is_terminal and sys.stdout.isatty()):
        yield lambda _: None
        return
    columns = (TextColumn("{task.fields[posts]:,} posts"), BarColumn(), TextColumn("{task.fields[rate]:,.0f} posts/s"))
    known = (TaskProgressColumn(),) if size else ()
    with Progress(*columns, *known, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("publish", total=size or None, posts=0, rate=0.0)
        began_s = clock.perf_s()

        def on_progress(count: int) -> None:
            rate = count / max(clock.perf_s() - began_s, 1e-3)
            progress.update(task, completed=posts.bytes_read, posts=count, rate=rate)

        yield on_progress
