"""Progress bars, for people who look at them."""

import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from manyray.reading import PostFile
from streams import clock

_log = logging.getLogger("manyray.progress")

LOG_EVERY_S = 30.0
"""Where nobody looks at a bar."""


@contextmanager
def show_progress(what: str, posts: PostFile, size: int | None) -> Generator[Callable[[int], None]]:
    """A bar on stderr that is told how many posts are done, by bytes where the size is known; nobody looks, no bar."""
    console = Console(stderr=True)
    if not (console.is_terminal and sys.stdout.isatty()):
        yield lambda _: None
        return
    columns = (TextColumn("{task.fields[posts]:,} posts"), BarColumn(), TextColumn("{task.fields[rate]:,.0f} posts/s"))
    known = (TaskProgressColumn(), TextColumn("left"), TimeRemainingColumn()) if size else ()
    with Progress(*columns, *known, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task(what, total=size or None, posts=0, rate=0.0)
        began_s, before = clock.perf_s(), -1

        def on_progress(count: int) -> None:
            nonlocal before
            before = count if before < 0 else before  # what was done by an earlier run has no part in the pace
            rate = (count - before) / max(clock.perf_s() - began_s, 1e-3)
            progress.update(task, completed=posts.bytes_read, posts=count, rate=rate)

        yield on_progress


@contextmanager
def show_share(total: int) -> Generator[Callable[[int, str], None]]:
    """A bar on stderr that is told how much of `total` is done, and what to say of it; nobody looks, a line at times.

    Lines go to the log.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _log_share(total)
        return
    said = TextColumn("{task.description}", markup=False)
    columns = (said, BarColumn(), TaskProgressColumn(), TextColumn("left"), TimeRemainingColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda done, said: progress.update(task, completed=done, description=said)


def _log_share(total: int) -> Callable[[int, str], None]:
    told_s = clock.perf_s()

    def show(done: int, said: str) -> None:
        nonlocal told_s
        if clock.perf_s() - told_s >= LOG_EVERY_S:
            told_s = clock.perf_s()
            _log.info("%.0f%%: %s", 100 * done / total, said)

    return show
